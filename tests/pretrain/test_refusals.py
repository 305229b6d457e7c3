"""What cannot be run ends in one clear line; what goes wrong while running says so at once."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from decur.cli import main
from decur.encoders import Projector, TimmEncoder
from decur.errors import ConfigError
from decur.objectives import DeCUR
from decur.pretrain import Pretrainer, run
from decur.pretrain.state import open_run

SMALL = [
    *("--encoder.name=test_resnet", "--projector.width=16", "--views.size=24"),
    *("--loader.batch_size=8", "--loader.workers=0", "--trainer.max_epochs=1"),
    *("--optimizer.name=adamw", "--monitor.every_epochs=0"),
]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=demmo"], "no such recipe; recipes: demo"),
        (["--config=demo", "--view.size=3"], "view.size: unknown key; did you mean views.size?"),
        (["--config=demo", "--views.size=big"], "views.size: expected int, got 'big'"),
        (["--config=demo", "--objective.comon=0.5"], "objective.comon: DeCUR takes no such key"),
        (["--config=demo", "--objective.common=much"], "objective.common: expected float"),
        (["--config=demo", "--objective.common=1.5"], "common"),
        (["--config=demo", "--objective.dim=512"], "give --projector.width 512"),
        (["--config=demo", "--objective.init_args.dim", "512"], "which it follows, is 256"),
        (["--config=demo", "--objective=Nope"], "objective: no class 'Nope'"),
        (["--config=demo", "--encoder.name=resnet_18"], "no encoder 'resnet_18'; did you mean"),
        (["--config=demo", "--views.augment.sar={blur: 1}"], "blur"),
        (["--config=demo", "--optimizer.lr=-1"], "optimizer.lr: must be from 0 to"),
        (["--config=demo", "--loader.max_bad=2"], "loader.max_bad: must be from 0 to 1"),
        (["--config=demo", "--loader.batch_size=99999"], "more than the 2048 samples"),
        (["--config=demo", "--projector.layers=0"], "set projector.width to 96"),
        (["--config=demo", "--trainer.accumulate_grad_batches=2"], "accumulate_grad_batches"),
        (["--config=demo", "--trainer.max_epochs=x"], "max_epochs: expected int or null, got 'x'"),
        (["--config=demo", "--trainer.precision=7"], "trainer.precision: expected one of 64, 32"),
        (["--config=demo", "--trainer.accelerator=abacus"], "trainer: "),
        (["--config=demo", "--trainer.max_epochs=0"], "max_epochs: must be from 1 to 1,000,000"),
        (["--config=demo", "--trainer.max_steps=0"], "trainer.max_steps: must be from 1 to"),
        (["--config=demo", "--projector.width=1000000"], "projector.width: must be from 1 to"),
        (["--config=demo", "--projector.layers=1000"], "projector.layers: must be from 0 to 64"),
        (["--config=demo", "--loader.workers=100000"], "loader.workers: must be from 0 to 1,024"),
        (["--config=demo", "--views.size=1000000"], "views.size: must be from 1 to 16,384"),
        (["--config=demo", "--optimizer.warmup_epochs=1e9"], "warmup_epochs: must be from 0 to"),
        (
            ["--config=demo", "--optimizer.lr=.nan"],
            "optimizer.lr: must be from 0 to 1e+38, is nan",
        ),
        (["--config=demo", "--projector.width=131072", "--projector.layers=64"], "GB of memory"),
        (["--config=demo", "--views.size=16384", "--loader.batch_size=2048"], "GB of memory"),
        (["--config=demo", "--encoder.name=mlp", "--encoder.options={width: 900000}"], "GB of"),
        (
            ["--config=demo", "--encoder.name=mlp", "--encoder.options={layers: 100000}"],
            "layers: from 1 to 512",
        ),
        (
            ["--config=demo", "--trainer.accelerator=cpu", "--trainer.devices=1000"],
            "1,000 processes on the CPU of this machine, and up to",
        ),
        (["--config=demo", "--trainer.max_epochs=-1"], "goes on for ever"),
        (["--config=demo", "--trainer.limit_train_batches=0"], "limit_train_batches: 0 of 16"),
        (["--config=demo", "--trainer.limit_train_batches=0.01"], "of 16 batches an epoch is none"),
        (["--config=demo", "--seed=-1"], "seed: a whole number from 0"),
        (["--config=demo", "--monitor.samples=0"], "monitor.samples: must be from 1 to 1,000,000"),
        (["--config=demo", "--monitor.every_epochs=-1"], "monitor.every_epochs: must be from 0 to"),
        (["--config=demo", "--encoder.options.pretrained=true"], "is encoder.pretrained; give it"),
        (["--config=demo", "--encoder.options.num_classes=5"], "see encoder.options"),
        (["--config=demo", "--encoder.name=test_vit", "--views.size=40"], "(views.size)"),
        (["--config=demo", "--resume"], "holds no checkpoint"),
        (["--finish", "--overwrite"], "--finish and --overwrite: contradict each other"),
        (["--finish", "--run"], "--run: give a folder"),
        (["--config=ombria"], "data.root: is required by PairedFolder"),
        (["--config=ombria", "--data.root=/no/where"], "/no/where"),
        ([], "data.root: is required by PairedFolder"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(arguments, said, refused, tmp_path):
    run = [] if "--run" in arguments else [f"--run={tmp_path / 'run'}"]
    assert said in refused("pretrain", *arguments, *run)


def test_a_width_of_its_own_in_a_file_is_refused_where_it_differs(refused, tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("base: demo\nobjective: {class_path: DeCUR, init_args: {dim: 512}}\n")
    given = [f"--config={config}", f"--run={tmp_path / 'run'}"]
    assert "give --projector.width 512" in refused("pretrain", *given)
    same = [*given, "--projector.width=512", "--seed=-1"]
    assert "seed: a whole number" in refused("pretrain", *same)
    # a kept configuration holds both, and follows
    config.write_text(config.read_text() + "projector: {width: 512}\n")
    assert "seed: a whole number" in refused(
        "pretrain", *given, "--projector.width=64", "--seed=-1"
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("views: {sizee: 3}", "views.sizee: unknown key; did you mean views.size?"),
        ("viewss: {size: 3}", "viewss.size: unknown key"),
        ("views: [", "not valid YAML"),
        ("- 1", "must be a YAML mapping"),
        ("data: {class_path: PairedFolder, init_args: {rot: x}}", "data.rot: PairedFolder takes"),
    ],
)
def test_a_wrong_file_ends_in_one_line(text, said, refused, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert said in refused("pretrain", f"--config={path}", f"--run={tmp_path / 'run'}")


def test_another_configuration_in_the_same_folder_is_refused(ready, refused, tmp_path):
    folder = ready("--trainer.max_epochs=1")
    kept = sorted(path.name for path in (folder / "checkpoints").iterdir())
    same = ["pretrain", "--config", str(folder / "config.yaml"), f"--run={folder}"]
    line = refused(*same, "--projector.width=64")
    assert "projector.width 32, not 64" in line and "--overwrite" in line
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == kept
    main([*same, "--loader.workers=1"])  # what does not change the result may change
    main([*same, "--projector.width=64", "--overwrite"])
    precious = tmp_path / "thesis"
    precious.mkdir()
    (precious / "chapter1").touch()
    assert "not deleting" in refused(
        "pretrain", "--config=demo", f"--run={precious}", "--overwrite"
    )
    assert (precious / "chapter1").exists()


def test_a_folder_that_is_no_run_is_left_alone(refused, tmp_path):
    (tmp_path / "metrics.csv").write_text("mine")
    (tmp_path / "tensorboard").mkdir()
    line = refused("pretrain", "--config=demo", f"--run={tmp_path}")
    assert "is not empty and holds no run" in line
    assert (tmp_path / "metrics.csv").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "tensorboard"]


def test_a_checkpoint_of_another_architecture_is_refused(ready, refused):
    folder = ready("--trainer.max_epochs=1")
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("test_resnet", "test_efficientnet"))
    line = refused("pretrain", "--config", str(config), f"--run={folder}")
    assert "test_resnet" in line and "encoder.name" in line


def test_bad_samples_are_skipped_and_listed(make_pairs, tmp_path):
    root = make_pairs({"s1": 1, "s2": 3}, samples=24, size=24)
    (root / "s1" / "0003.npy").write_bytes(b"")
    np.save(root / "s2" / "0005.npy", np.full((3, 24, 24), np.nan, np.float32))
    (root / "mask").mkdir()
    for i in range(24):
        Image.fromarray(np.full((24, 24), i % 2, np.uint8)).save(root / "mask" / f"{i:04d}.png")
    (root / "mask" / "0000.png").write_bytes(b"not read, where nothing is learned of masks")
    folder = tmp_path / "run"
    main(["pretrain", f"--data.root={root}", f"--run={folder}", "--loader.max_bad=0.1", *SMALL])
    listed = {
        row["file"]: row["reason"] for row in csv.DictReader((folder / "bad_samples.csv").open())
    }
    assert {name.rsplit("/", 2)[1] + name.rsplit("/", 1)[1] for name in listed} == {
        "s10003.npy",
        "s20005.npy",
    }
    assert all(listed.values())


def test_too_many_bad_samples_stop_the_run(make_pairs, tmp_path, refused):
    root = make_pairs({"s1": 1, "s2": 3}, samples=24, size=24)
    for i in range(8):
        (root / "s1" / f"{i:04d}.npy").write_bytes(b"")
    line = refused("pretrain", f"--data.root={root}", f"--run={tmp_path / 'run'}", *SMALL)
    assert "loader.max_bad 0.01" in line and "bad_samples.csv" in line


def test_a_non_finite_term_stops_the_run_and_is_named(ready, refused, monkeypatch):
    folder = ready()
    real = DeCUR.forward

    def forward(self, embeddings, present=None):
        terms = real(self, embeddings, present)
        return {**terms, "unique/optical-sar": torch.tensor(float("nan"))}

    last = sorted((folder / "checkpoints").iterdir())[-1]
    last.unlink()  # go on after the first epoch, and go wrong
    monkeypatch.setattr(DeCUR, "forward", forward)
    again = ["pretrain", "--config", str(folder / "config.yaml"), f"--run={folder}"]
    line = refused(*again, code=3)
    assert "unique/optical-sar" in line and "nan" in line and "epoch 1" in line
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000000003.ckpt"]


def test_constant_embeddings_are_a_collapse(tiny_arguments, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(Projector, "forward", lambda self, x: 0 * x[:, :32] + 1)
    line = refused("pretrain", *tiny_arguments, f"--run={tmp_path / 'run'}", code=3)
    assert "collapse at step 0" in line and "'optical'" in line and "constant" in line


def test_features_on_a_line_are_a_collapse(tiny_arguments, refused, monkeypatch, tmp_path):
    real = TimmEncoder.forward
    monkeypatch.setattr(
        TimmEncoder, "forward", lambda self, x: real(self, x)[:, :1] * torch.arange(1.0, 97.0)
    )
    watched = [*tiny_arguments, "--monitor.every_epochs=1"]
    line = refused("pretrain", *watched, f"--run={tmp_path / 'run'}", code=3)
    assert "'optical' have effective rank 1.0" in line
    assert not list((tmp_path / "run").glob("checkpoints/*"))  # nothing good to keep yet


def test_weights_that_the_last_step_spoils_are_not_kept(tiny_arguments, refused, tmp_path):
    run = tmp_path / "run"
    once = ["--trainer.limit_train_batches=1", "--trainer.max_epochs=1"]
    for lr, monitor, said in (
        (1e38, 0, "is not finite after step 1"),
        (1e20, 1, "features of 'optical': not finite"),
    ):
        spoilt = [*once, "--overwrite", f"--monitor.every_epochs={monitor}"]
        spoilt += [f"--optimizer.lr={lr}", f"--optimizer.lr_bias={lr}"]
        line = refused("pretrain", *tiny_arguments, f"--run={run}", *spoilt, code=3)
        assert said in line
        assert not list(run.glob("checkpoints/*")) and not (run / "encoders").exists()


@pytest.mark.parametrize("name", ["train", "s1.vv"])
def test_a_sensor_must_not_be_called_what_pytorch_cannot_keep(name, make_pairs, refused, tmp_path):
    root = make_pairs({name: 1, "s2": 1}, samples=16, size=24)
    line = refused("pretrain", f"--data.root={root}", f"--run={tmp_path / 'run'}", *SMALL)
    assert f"modality {name!r}: " in line and "rename it" in line


def test_overwriting_no_process_looks_at_what_is_being_deleted(tiny, ready, monkeypatch):
    folder = ready("--trainer.max_epochs=1")

    def opened(folder, config, anew):
        assert open_run(folder, None) is not None
        assert open_run(folder, config, anew) is None
        raise ConfigError("seen")

    monkeypatch.setattr(run, "open_run", opened)
    monkeypatch.setattr(rank_zero_only, "rank", 1)  # of two; the first deletes it
    with pytest.raises(SystemExit):
        tiny("--projector.width=16", "--overwrite")
    assert list(folder.glob("checkpoints/*"))


def test_what_has_no_deterministic_algorithm_is_told_in_one_line(
    refused, tiny_arguments, tmp_path, monkeypatch
):
    def make_views(self, batch, epoch):
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))  # has none on a CPU, either

    monkeypatch.setattr(Pretrainer, "make_views", make_views)
    monkeypatch.setattr("decur.pretrain.run.save_contact_sheet", lambda *given: tmp_path)
    given = [*tiny_arguments, f"--run={tmp_path / 'run'}", "--trainer.deterministic=true"]
    try:
        said = refused("pretrain", *given)
    finally:
        torch.use_deterministic_algorithms(False)
    assert "trainer.deterministic: true cannot be kept (put_ does not have" in said
    assert "give warn" in said
