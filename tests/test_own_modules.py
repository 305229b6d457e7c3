"""What CONTRIBUTING says can be added is added by one file outside the package, and used."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import rasterio
import torch

from decur import Modality, build_encoder, load_encoder, save_encoder
from decur.cli import main
from decur.data import DATASETS
from decur.encoders.header import EncoderHeader
from decur.errors import ConfigError, DataError

TINY = [
    *("--projector.width=8", "--projector.layers=1", "--views.size=8", "--loader.batch_size=8"),
    *("--loader.workers=0", "--trainer.max_epochs=1", "--monitor.samples=16"),
]

LEARNED = {
    "probed": ["--freeze=true", "--probe=auto"],
    "tuned": ["--freeze=false", "--fit.augment=false"],
}
LEARN = ["--folds=2", "--bootstrap=10", "--fit.epochs=60", "--fit.lr=0.02"]
HERE = ["--loader.workers=0"]


@pytest.fixture
def elsewhere(apart, tmp_path, monkeypatch):
    """Do something in a process of its own, which may import `own_modules`; what it prints."""

    def run(work, *arguments, own: str = "own_modules") -> str:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DECUR_IMPORT", own)
        code, out, error = apart(_in_folder, tmp_path, work, *arguments).end()
        assert code == 0, out + error
        return out

    return run


def _in_folder(folder: Path, work, *arguments) -> None:
    os.chdir(folder)
    work(*arguments)


def _use_each() -> None:
    print(build_encoder("test_resnet", 1, attention="gate").dim)
    data = ["--data=Waves", *HERE]
    main(
        ["pretrain", "--run=run", *data, "--objective=Distance", *TINY]
        + ["--objective.weight=2", "--encoder.name=blocks", "--encoder.options.width=6"]
    )
    main(["explain", "--run=run", "--only=norms", "--options.norms.scale=3"])
    _write_pictures(Path("pictures"))
    for run, options in LEARNED.items():
        main(["transfer", "--encoders=run", f"--run={run}", *data, *LEARN, *options])
        main(["predict", run, "--data.root=pictures", f"--out={run}-predicted", *HERE])
    main(["predict", "probed", "--scene=left=pictures/left/000.tif", "--out=map.tif", *HERE])


def _write_pictures(folder: Path) -> None:
    """Write the samples of the data set as a folder of pictures, placed on the globe."""
    data = DATASETS.get("Waves")()
    for sample in map(data.read, range(len(data))):
        for name, x in sample["images"].items():
            path = folder / name / f"{sample['id']}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            place = {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 0, 0, -10, 0)}
            with rasterio.open(path, "w", "GTiff", 16, 16, 1, dtype=np.float32, **place) as file:
                file.write(x.numpy())


def test_one_of_each_from_a_file_outside_the_package(elsewhere, tmp_path):
    printed = elsewhere(_use_each)
    assert printed.startswith("96\n")  # attention
    assert "Distance" in printed and "blocks" in printed  # method and encoder
    assert "the norm is 3" in (tmp_path / "run" / "report.html").read_text()  # analysis
    for run in LEARNED:  # kind of label
        results = json.loads((tmp_path / run / "results.json").read_text())
        assert results["kind"] == "angle" and results["fit"]["name"] == "adamw"  # as none is known
        with np.load(tmp_path / run / "predictions.npz") as kept:
            turned = kept["output"] @ [1, 1j] / abs(kept["output"] @ [1, 1j])  # (N,) on the circle
            cosine = (turned * np.exp(-1j * kept["truth"])).real.mean()
            tested = dict(zip(kept["ids"].tolist(), turned, strict=True))
        assert results["metrics"]["cosine"]["value"] == pytest.approx(cosine, abs=1e-5)
        table = pd.read_parquet(tmp_path / f"{run}-predicted" / "predictions.parquet")
        assert list(table) == ["id", "degrees"] and len(table) == 32
        told = dict(zip(table["id"], np.exp(1j * np.radians(table["degrees"])), strict=True))
        assert all(abs(told[id_] - turned) < 1e-3 for id_, turned in tested.items())
    with rasterio.open(tmp_path / "map.tif") as file:
        assert file.descriptions == ("shift/0", "shift/1") and np.isfinite(file.read()).all()


def _keep_attention() -> None:
    x = torch.rand(1, 1, 64, 64)
    modality = Modality.preset("dem")
    state = build_encoder("test_resnet", modality).state_dict()
    outputs = {}
    for geometry in ("dat", "centred"):
        encoder = build_encoder("test_resnet", modality, attention="moved", geometry=geometry)
        encoder.load_state_dict(state)
        outputs[geometry] = encoder.eval()(x)
        file = save_encoder(encoder, Path("moved.safetensors"))
        print(torch.equal(load_encoder(file).eval()(x), outputs[geometry]))
    print(torch.equal(*outputs.values()))
    options = {"attention": {"layer4": "moved"}}  # that version 0.1 had no geometry for
    header = {"encoder": "test_resnet", "options": options, "modality": modality.to_dict()}
    print(EncoderHeader.check(file, header).options == options)


def test_a_file_keeps_the_geometry_of_an_attention_of_ones_own(elsewhere):
    assert elsewhere(_keep_attention).split() == ["True", "True", "False", "True"]


def _print_width(file: str) -> None:
    print(load_encoder(file).dim)


def test_what_is_named_in_full_needs_no_registration(elsewhere, tmp_path, monkeypatch):
    words = ["pretrain", "--run=run", "--data=own_modules.Waves", *TINY]
    words += ["--objective=own_modules.Distance", "--encoder.name=own_modules:blocks_of_six"]
    elsewhere(main, words, own="")
    file = tmp_path / "run" / "encoders" / "left.safetensors"
    assert elsewhere(_print_width, str(file)) == "6\n"
    monkeypatch.delenv("DECUR_IMPORT")
    with pytest.raises(DataError, match="DECUR_IMPORT=own_modules"):  # a file imports nothing
        load_encoder(file)
    assert "own_modules" not in sys.modules


def test_elsewhere_it_is_not_known():
    assert "Waves" not in DATASETS.names()
    with pytest.raises(ConfigError, match="no encoder 'blocks'"):
        build_encoder("blocks", 1)
