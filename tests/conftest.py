"""What several tests need."""

import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import multiprocessing

from apart import Apart
from decur.data import SyntheticScenes

# A server that has imported everything forks faster than each process would import. Packages import
# nothing by themselves, so modules are named.
multiprocessing.get_context("forkserver").set_forkserver_preload(
    [*(f"decur.{part}.run" for part in ("pretrain", "transfer", "explain")), "timm"]
)


def pytest_collection_finish(session):
    """Let the collector of garbage pass over what has been imported: it stays to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def drawing():
    """Let the commands of a test draw their figures."""


@pytest.fixture(autouse=True)
def _no_pictures(request, monkeypatch):
    """Drawing takes as long as all else that a tiny run does; reports say that there are none."""
    if "drawing" not in request.fixturenames:
        monkeypatch.setattr("decur.plotting.available", lambda: False)


_drawn: dict[tuple[object, ...], dict] = {}


@pytest.fixture(autouse=True)
def _scenes_are_drawn_once(request, monkeypatch):
    """A scene depends on its number alone; only the tests of data draw each anew."""
    if request.path.parent.name == "data":
        return
    draw = SyntheticScenes.read

    def read(self, index):
        number = self.start + index
        kind = (self.noise, self.structure, self.pair_factors)
        key = (self.seed, number, self.size, tuple(self.modalities), kind)
        if key not in _drawn or not 0 <= index < len(self):
            if len(_drawn) > 4000:
                _drawn.clear()
            _drawn[key] = draw(self, index)
        copies = {
            part: {name: value.clone() for name, value in _drawn[key][part].items()}
            for part in ("images", "target")
        }
        return {"id": self.ids[index], **copies}

    monkeypatch.setattr(SyntheticScenes, "read", read)


@pytest.fixture
def apart(tmp_path):
    """Start a function in a process of its own; what is still at work at the end is killed."""
    started = []

    def start(work: Callable[..., object], *arguments: object) -> Apart:
        started.append(Apart(tmp_path / f"apart-{len(started)}", work, *arguments))
        return started[-1]

    yield start
    for each in started:
        if each.process.is_alive():
            each.process.kill()
            each.process.join()


@pytest.fixture
def make_pairs(tmp_path):
    """Write a paired folder of .npy (or 8-bit .png) pictures with something in common."""

    def make(bands: dict[str, int], samples: int, size: int, kind: str = "npy") -> Path:
        root = tmp_path / "pairs"
        rng = np.random.default_rng(0)
        for name in bands:
            (root / name).mkdir(parents=True)
        for i in range(samples):
            shared = np.kron(rng.normal(size=(4, 4)), np.ones((size // 4, size // 4)))
            for name, channels in bands.items():
                picture = shared + 0.5 * rng.normal(size=(channels, size, size))
                file = root / name / f"{i:04d}.{kind}"
                if kind == "npy":
                    np.save(file, picture.astype(np.float32))
                else:
                    byte = np.clip(128 + 40 * picture, 0, 255).astype(np.uint8)
                    Image.fromarray(byte[0] if channels == 1 else np.moveaxis(byte, 0, -1)).save(
                        file
                    )
        return root

    return make
