"""Checkpoints of fresh weights, and scenes for them."""

import pytest
import torch

from decur.data import SyntheticScenes
from decur.encoders import Projector, build_encoder
from decur.explain import Checkpoint, SampleLoader
from decur.pretrain import LoaderSettings

SENSORS = ("optical", "sar", "elevation")
SPLIT = {"common": slice(0, 12), "unique": slice(12, 16)}


@pytest.fixture(autouse=True)
def _one_thread(drawing):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_checkpoint():
    """Make a checkpoint for `SyntheticScenes`: embeddings of 16, of which 12 are common."""

    def make(
        modalities: int = 2,
        parts: dict[str, slice] = SPLIT,
        encoder: str = "test_resnet",
        seed: int = 0,
        name: str = "tiny",
    ) -> Checkpoint:
        data = SyntheticScenes(samples=1, size=32, modalities=SENSORS[:modalities])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoders = {key: build_encoder(encoder, m) for key, m in data.modalities.items()}
            width = max(part.stop for part in parts.values())
            projectors = {key: Projector(e.dim, width, layers=2) for key, e in encoders.items()}
        return Checkpoint(
            name, encoders, projectors=projectors, modalities=data.modalities, parts=parts
        )

    return make


@pytest.fixture
def tiny_loader():
    """Make a loader of scenes of 32 px."""

    def make(samples: int = 48, modalities: int = 2) -> SampleLoader:
        data = SyntheticScenes(samples=samples, size=32, modalities=SENSORS[:modalities])
        return SampleLoader(data, settings=LoaderSettings(batch_size=16, workers=0))

    return make
