"""A small finished run, small data with absent sensors, and the command in this process."""

import shutil

import pytest
import torch

from decur.cli import main
from decur.data import PairedFolder
from decur.embed import embed
from decur.encoders import EncoderSettings
from decur.modality import Modality
from decur.objectives import DeCUR
from decur.pretrain import LoaderSettings
from decur.pretrain.run import pretrain
from decur.pretrain.settings import MonitorSettings, ProjectorSettings, ViewSettings

BATCH = LoaderSettings(batch_size=4, workers=0, max_bad=0.2)
CPU = {"accelerator": "cpu"}


@pytest.fixture(autouse=True)
def _one_thread(drawing):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def pairs(make_pairs):
    """Twenty-two pairs of 32 px; 0003 and 0004 lack s2, 0009 lacks s1."""
    root = make_pairs({"s1": 1, "s2": 3}, samples=22, size=32)
    for missing in ("s2/0003", "s2/0004", "s1/0009"):
        (root / f"{missing}.npy").unlink()
    modalities = {
        name: Modality(name=name, bands=bands, scaling="range", value_range=(-3.0, 3.0))
        for name, bands in (("s1", ("a",)), ("s2", ("a", "b", "c")))
    }
    return PairedFolder(root, modalities=modalities)


@pytest.fixture(scope="session")
def kept():
    """The run, once a test has made it."""
    return []


@pytest.fixture
def run(pairs, kept, tmp_path, tmp_path_factory):
    """The folder of a run on these pairs: embeddings of 16, of which 12 are common."""
    if not kept:
        made = tmp_path_factory.mktemp("kept") / "run"
        config = (
            "projector: {width: 16, layers: 2}\n"
            "objective: {class_path: decur.objectives.DeCUR, init_args: {common: 0.75}}\n"
        )
        pretrain(
            pairs,
            DeCUR(dim=16, common=0.75),
            run=str(made),
            encoder=EncoderSettings("test_resnet"),
            projector=ProjectorSettings(16, 2),
            views=ViewSettings(32),
            loader=LoaderSettings(batch_size=8, workers=0),
            monitor=MonitorSettings(every_epochs=0),
            trainer={"max_epochs": 1, **CPU},
            config=config,
        )
        kept.append(made)
    return shutil.copytree(kept[0], tmp_path / "run")


@pytest.fixture
def embedded(pairs, run, tmp_path):
    """The folder of embeddings of these pairs by that run."""
    return embed(pairs, str(run), out=str(tmp_path / "out"), loader=BATCH, trainer=CPU)


@pytest.fixture
def refused(capsys):
    """A command that must be refused: the one line that says why."""

    def of(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            main(list(arguments))
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert stopped.value.code == 2 and len(lines) == 1
        return lines[0]

    return of
