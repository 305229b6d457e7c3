"""A run from the command line: what it leaves, and that it repeats."""

import csv

import pytest
import torch
from make_geonrw import make_geonrw
from make_ssl4eo_s12 import make_ssl4eo_s12
from make_sunrgbd import make_sunrgbd
from safetensors.torch import load_file

from decur import Modality
from decur.cli import main
from decur.data import LoaderSettings, SyntheticScenes
from decur.encoders import EncoderSettings, load_encoder
from decur.objectives import DeCUR
from decur.pretrain.metrics import read_metrics
from decur.pretrain.run import pretrain
from decur.pretrain.settings import (
    MonitorSettings,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)
from decur.recipes import command_of, find_config, recipes


def weights(folder):
    return {
        path.stem: load_file(path) for path in sorted((folder / "encoders").glob("*.safetensors"))
    }


def equal(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[m][key], b[m][key]) for m in a for key in a[m])


def test_a_run_leaves_what_is_promised_and_repeats_from_its_own_config(tiny, tmp_path, drawing):
    folder = tiny("--monitor.every_epochs=1")
    for name in ("config.yaml", "metrics.csv", "report.html", "figures/views.png"):
        assert (folder / name).stat().st_size > 0, name
    for name in ("loss", "diagonals", "ranks", "probes"):
        assert (folder / "figures" / f"{name}.png").stat().st_size > 1000
    assert list((folder / "tensorboard").glob("events*"))
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) == 2

    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for key in (
        *("loss", "intra/sar", "common/optical-sar", "unique/optical-sar"),
        *("common/optical-sar/dim", "diagonal/common/optical-sar", "offdiag_rms/optical-sar"),
        *("diagonal/unique/optical-sar", "rank/features/sar", "rank/embedding/optical"),
        *("probe/cover/optical/linear", "probe/moisture/sar/knn", "probe/cloud/optical+sar/knn"),
    ):
        assert float(rows[-1][key]) == float(rows[-1][key]), key
    terms = [
        float(rows[0][k])
        for k in rows[0]
        if k.count("/") == 1 and k.split("/")[0] in ("intra", "common", "unique")
    ]
    assert sum(terms) == pytest.approx(float(rows[0]["loss"]), rel=1e-5)

    encoder = load_encoder(folder / "encoders" / "sar.safetensors")
    assert isinstance(encoder.modality, Modality) and encoder.modality.bands == ("VV", "VH")
    assert encoder(torch.rand(2, 2, 40, 40)).shape == (2, encoder.dim)

    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 4
    assert "http://" not in page and "https://" not in page and 'src="figures' not in page
    assert "2048" not in page and "48 samples" in page

    again = tmp_path / "again"
    main(["pretrain", "--config", str(folder / "config.yaml"), "--run", str(again)])
    assert equal(weights(folder), weights(again))

    other = tiny("--seed=1", "--monitor.every_epochs=0", name="other")
    assert not equal(weights(folder), weights(other))


@pytest.mark.parametrize("attention", ["rda", "{layer1: cbam, layer4: da}"])
def test_attention_is_a_key_of_the_encoder(attention, tiny, tmp_path):
    short = ("--monitor.every_epochs=0", "--trainer.max_epochs=1")
    folder = tiny(f"--encoder.attention={attention}", *short)
    keys = [key for key in weights(folder)["sar"] if "attention" in key]
    stages = {key.partition(".attention")[0] for key in keys}
    assert stages == ({"layer3", "layer4"} if attention == "rda" else {"layer1", "layer4"})
    if attention == "rda":
        return
    again = tmp_path / "again"  # keys of its own are written down and read
    main(["pretrain", "--config", str(folder / "config.yaml"), "--run", str(again)])
    assert equal(weights(folder), weights(again))


def test_monitors_change_nothing(tiny, ready):
    watched = ready()
    unwatched = tiny("--monitor.every_epochs=0", "--monitor.batches=1", name="unwatched")
    assert equal(weights(watched), weights(unwatched))


def test_workers_change_nothing(tiny, ready):
    quick = "--trainer.max_epochs=1"
    assert equal(weights(ready(quick)), weights(tiny("--loader.workers=2", quick, name="two")))


QUICK = ("demo", "ombria", "geonrw-vit")
PRETRAINING = [name for name, text in recipes().items() if command_of(text) == "pretrain"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in PRETRAINING]
)
def test_every_recipe_of_pretraining_runs(name, tmp_path, make_pairs):
    layers = find_config(name)
    arguments = ["--monitor.every_epochs=0", f"--run={tmp_path / 'run'}"]
    root = tmp_path / "data"
    match layers[0]["data"]["class_path"].rpartition(".")[2]:
        case "PairedFolder":
            root = make_pairs({"s1": 1, "s2": 3}, samples=16, size=32)
            arguments.append(f"--data.root={root}")
        case "SSL4EOS12":
            places = range(4)
            arguments.append(f"--data.root={make_ssl4eo_s12(root, {'s1': places, 's2c': places})}")
        case "GeoNRW":
            arguments.append(f"--data.root={make_geonrw(root, ['bonn'])}")
        case "SUNRGBD":
            scenes = [f"kv1/NYUdata/NYU{i:04d}" for i in range(16)]
            made = make_sunrgbd(root, {"train": scenes[:8], "test": scenes[8:]})
            arguments += [f"--data.root={made}", "--data.size=[48,64]"]
        case _:
            arguments += ["--data.samples=16", "--data.size=32"]
    arguments += [
        "--encoder.pretrained=false",  # a download
        f"--encoder.name={'test_vit' if 'vit' in name.split('-') else 'test_resnet'}",
        *("--projector.width=16", f"--views.size={32 if 'vit' in name.split('-') else 24}"),
        *("--loader.batch_size=8", "--loader.workers=0", "--trainer.max_epochs=1"),
    ]
    main(["pretrain", f"--config={name}", *arguments])
    run, again = tmp_path / "run", tmp_path / "again"
    assert list((run / "encoders").glob("*.safetensors"))
    if len(layers) == 1:  # whatever was given how, the file that is kept says it all
        main(["pretrain", f"--config={run / 'config.yaml'}", f"--run={again}"])
        assert equal(weights(run), weights(again))


def test_three_sensors_and_absent_ones(tmp_path, make_pairs):
    root = make_pairs({"a": 1, "b": 2, "c": 3}, samples=24, size=24)
    for i in range(0, 24, 3):
        (root / "b" / f"{i:04d}.npy").unlink()
    folder = tmp_path / "run"
    main(
        [
            "pretrain",
            f"--data.root={root}",
            f"--run={folder}",
            "--encoder.name={a: test_resnet, b: test_efficientnet, c: test_vit}",
            "--projector.width=16",
            "--views.size=32",
            "--loader.batch_size=8",
            "--loader.workers=0",
            "--trainer.max_epochs=1",
            "--optimizer.name=adamw",
        ]
    )
    row = next(csv.DictReader((folder / "metrics.csv").open()))
    assert {"common/a-b", "common/a-c", "common/b-c", "unique/b-c"} <= set(row)
    assert all(float(value) == float(value) for value in row.values() if value)
    assert set(weights(folder)) == {"a", "b", "c"}


def test_with_accumulated_gradients_the_rate_falls_to_the_end(tmp_path):
    """For objectives that take parts of a batch: a step is of several batches."""

    class OfParts(DeCUR):
        needs_whole_batch = None

    scenes = SyntheticScenes(samples=64, size=24, modalities=["optical", "sar"])
    done = pretrain(
        scenes,
        OfParts(dim=16),
        run=str(tmp_path / "run"),
        encoder=EncoderSettings("mlp"),
        projector=ProjectorSettings(16),
        views=ViewSettings(24),
        loader=LoaderSettings(8, workers=0),
        optimizer=OptimizerSettings("adamw"),
        monitor=MonitorSettings(every_epochs=0),
        trainer={"max_epochs": 2, "accumulate_grad_batches": 4, "accelerator": "cpu"},
    )
    rows = read_metrics(done.folder)
    assert [row["step"] for row in rows] == [2, 4]
    assert [row["lr"] for row in rows] == pytest.approx([0.5e-4, 0.0], abs=1e-9)
