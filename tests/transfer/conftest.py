"""Small data and small encoders: a transfer in a second."""

import csv

import numpy as np
import pytest
import torch

from decur.cli import main
from decur.data import SyntheticScenes
from decur.encoders import build_encoder, save_encoder
from decur.features import FeatureModel, SampleLoader, cached_features


@pytest.fixture(autouse=True)
def _one_thread():
    """Pictures of 32 px are done sooner by one thread than they are shared among several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def scenes():
    """Sixty optical and radar scenes of 32 px."""
    return SyntheticScenes(60, 32, modalities=["optical", "sar"])


@pytest.fixture
def encoders(scenes):
    """A fresh tiny ResNet for each sensor, with batch statistics that are not at their start."""
    torch.manual_seed(0)
    made = {name: build_encoder("test_resnet", m) for name, m in scenes.modalities.items()}
    for name, encoder in made.items():
        encoder.train()
        encoder(torch.rand(8, scenes.modalities[name].channels, 32, 32))
    return {name: encoder.eval() for name, encoder in made.items()}


@pytest.fixture
def features_of():
    """Return features of frozen encoders and the labels of one target, as a transfer wants them."""

    def found(data, target, encoders, cache, loader, size=None, maps=False):
        read = data.only(list(encoders) or None, [target])
        model = FeatureModel(encoders, size=size)
        return cached_features(model, SampleLoader(read, settings=loader), cache=cache, maps=maps)

    return found


@pytest.fixture
def run_folder(encoders, tmp_path):
    """The folder of a pretraining run, as far as a transfer looks at it."""
    folder = tmp_path / "pretrained"
    for name, encoder in encoders.items():
        save_encoder(encoder, folder / "encoders" / f"{name}.safetensors")
    return folder


@pytest.fixture
def label_folder(make_pairs):
    """Write a folder of pairs with labels.csv, splits.csv; returns its root."""

    def make(labels: dict[int, str], samples: int = 40, column: str = "kind:class", split=None):
        root = make_pairs({"s1": 1, "s2": 3}, samples=samples, size=32)
        # given, so that no command needs to compute them
        (root / "modalities.yaml").write_text(
            "s1: {bands: [VV], mean: [0], std: [1]}\n"
            "s2: {bands: [r, g, b], mean: [0, 0, 0], std: [1, 1, 1]}\n"
        )
        with (root / "labels.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", column])
            writer.writerows((f"{i:04d}", labels.get(i, "")) for i in range(samples))
        with (root / "splits.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "split", "group"])
            for i in range(samples):
                part = split(i) if split else ("test" if i % 4 == 0 else "train")
                writer.writerow([f"{i:04d}", part, f"g{i // 4}"])
        return root

    return make


@pytest.fixture
def bright(label_folder):
    """A folder where the class is how bright the radar picture is."""
    root = label_folder({i: ("dark", "bright")[i % 2] for i in range(40)})
    for i in range(40):
        file = root / "s1" / f"{i:04d}.npy"
        np.save(file, np.load(file) + np.float32(2 * (i % 2)))
    return root


@pytest.fixture
def transferred(tmp_path):
    """Run `decur transfer` in this process; returns the run's folder."""

    def run(*arguments: str, name: str = "run"):
        folder = tmp_path / name
        common = [
            *("--encoder.name=test_resnet", "--loader.workers=0", "--bootstrap=0"),
            *("--device=cpu", f"--run={folder}"),
        ]
        main(["transfer", *common, *arguments])
        return folder

    return run


@pytest.fixture
def refused(transferred, capsys):
    """A transfer that must be refused: the one line that says why."""

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            transferred(*arguments, name="refused")
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
        assert stopped.value.code == 2 and len(lines) == 1
        return lines[0]

    return run
