"""A run that Python has started is a run like another: it tells its configuration and goes on."""

import pytest
import torch
import yaml
from torch import nn

import decur
from decur.bounded_yaml import LOADER
from decur.cli import main
from decur.data import SyntheticScenes
from decur.data.dictionaries import from_dataset
from decur.encoders import register_encoder
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.pretrain.configuration import UNTOLD

LOADER_OPTIONS = {"batch_size": 8, "workers": 0}
OPTIONS = {
    "encoder": "test_resnet",
    "projector": {"width": 16, "layers": 2},
    "views": {"size": 16},
    "loader": LOADER_OPTIONS,
    "monitor": {"every_epochs": 0},
    "trainer": {"max_epochs": 1, "accelerator": "cpu"},
}


def scenes():
    return SyntheticScenes(24, size=16, modalities=["optical", "sar"])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python") / "run"
    return decur.pretrain(scenes(), decur.DeCUR(16, common=0.25), run=folder, **OPTIONS)


def test_its_configuration_is_that_of_the_command(run, tmp_path):
    other = tmp_path / "other"
    main(
        ["pretrain", "--data", "SyntheticScenes", "--data.samples", "24", "--data.size", "16"]
        + ["--data.modalities", "[optical, sar]", "--objective.common", "0.25"]
        + ["--encoder.name", "test_resnet", "--projector.width", "16", "--projector.layers", "2"]
        + ["--views.size", "16", "--loader.batch_size", "8", "--loader.workers", "0"]
        + ["--monitor.every_epochs", "0", "--trainer.max_epochs", "1"]
        + ["--trainer.accelerator", "cpu", "--run", str(other)]
    )
    ours, theirs = (
        yaml.load((folder / "config.yaml").read_text(), LOADER)
        for folder in (run.folder.path, other)
    )
    assert ours.pop("run") == str(run.folder.path) and theirs.pop("run") == str(other)
    assert ours == theirs


@pytest.mark.usefixtures("drawing")
def test_what_it_returns_stands_for_its_folder(run, tmp_path):
    found = decur.explain(run, samples=24, only=["alignment"], loader=LOADER_OPTIONS)
    assert set(found.arrays) == {"alignment"}
    embedded = decur.embed(scenes(), run, out=str(tmp_path / "rows"), loader=LOADER_OPTIONS)
    assert embedded.rows == {"optical": 24, "sar": 24}
    told = decur.transfer(
        scenes(), encoders=run, target="cover", run=str(tmp_path / "told"), loader=LOADER_OPTIONS
    )
    assert "cover" in repr(told)
    predicted = decur.predict.predict_data(
        told, scenes(), out=str(tmp_path / "predicted"), loader=LOADER_OPTIONS
    )
    assert predicted


def test_it_goes_on_from_python_and_from_the_command(run):
    with pytest.raises(ConfigError, match="holds a run with seed 0, not 3"):
        decur.pretrain(
            scenes(), decur.DeCUR(16, common=0.25), run=run.folder.path, seed=3, **OPTIONS
        )
    with pytest.raises(ConfigError, match=r"objective\.init_args\.common 0\.25, not 0\.5"):
        decur.pretrain(scenes(), decur.DeCUR(16, common=0.5), run=run.folder.path, **OPTIONS)
    again = decur.pretrain(scenes(), decur.DeCUR(16, common=0.25), run=run, **OPTIONS)
    assert again.folder.path == run.folder.path
    main(["pretrain", "--run", str(run.folder.path), "--trainer.max_epochs", "2"])
    assert len(run.folder.metrics.read_text().splitlines()) == 3  # a header and two epochs


class Pooled(nn.Module):
    """A network of one's own."""

    def __init__(self, bands):
        super().__init__()
        self.layer = nn.Conv2d(bands, 8, 3, 2, 1)

    def forward(self, x):
        return self.layer(x).mean((2, 3))


@pytest.mark.usefixtures("drawing")
def test_what_no_file_can_tell_is_named_and_the_rest_is_told(tmp_path):
    register_encoder("pooled_of_python", Pooled)
    sensors = {
        "a": Modality("a", ("1",), scaling="image"),
        "b": Modality("b", ("1",), scaling="image"),
    }
    samples = [{name: torch.rand(1, 16, 16) for name in sensors} for _ in range(24)]
    data = from_dataset(samples, images={"a": "a", "b": "b"}, modalities=sensors)
    made = {name: Pooled(1) for name in sensors}
    options = {**OPTIONS, "encoder": made, "run": tmp_path / "run"}
    run = decur.pretrain(data, decur.DeCUR(16), **options)
    first = run.folder.config.read_text().splitlines()[0]
    assert first == f"{UNTOLD}data, encoder."
    kept = run.folder.configuration()
    assert kept["projector"]["width"] == 16 and "DeCUR" in kept["objective"]["class_path"]
    with pytest.raises(DataError, match=r"does not tell the data.*give --data"):
        decur.explain(run, only=["alignment"], loader=LOADER_OPTIONS)
    found = decur.explain(run, data, samples=24, only=["alignment"], loader=LOADER_OPTIONS)
    assert set(found.arrays) == {"alignment"}
    with pytest.raises(ConfigError, match=r"views\.size 16, not 24"):
        decur.pretrain(data, decur.DeCUR(16), **{**options, "views": {"size": 24}})
    with pytest.raises(ConfigError, match=r"optimizer\.lr None, not 0\.1"):
        decur.pretrain(data, decur.DeCUR(16), **options, optimizer={"lr": 0.1})
    assert decur.pretrain(data, decur.DeCUR(16), **options).folder.path == run.folder.path
    assert run.folder.config.read_text().splitlines()[0] == first
