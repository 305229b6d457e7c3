"""Saliency of a trained run lies where the scenes' factors are known to be."""

import numpy as np
import pytest
import torch

from decur.cli import main
from decur.data import SyntheticScenes
from decur.explain import Checkpoint, SampleLoader, encoded
from decur.explain.saliency import saliency_maps
from decur.explain.spatial import spatial
from decur.explain.spectral import SpectralSettings, spectral
from decur.pretrain import LoaderSettings

TRAINING = [
    "--config=demo",
    "--data.init_args.noise=true",
    "--data.init_args.samples=1024",
    "--data.init_args.size=48",
    "--views.size=32",
    "--loader.batch_size=64",
    "--loader.workers=0",
    "--projector.width=128",
    "--monitor.every_epochs=0",
    "--trainer.max_epochs=12",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, and scenes that it has not seen."""
    run = tmp_path_factory.mktemp("known") / "run"
    main(["pretrain", *TRAINING, f"--run={run}"])
    data = SyntheticScenes(200, 64, modalities=["optical", "sar"], start=10**6, noise=True)
    loader = SampleLoader(data, settings=LoaderSettings(workers=0))
    return Checkpoint.open(run, data.modalities), loader


@pytest.mark.slow
def test_unique_dimensions_look_at_clouds(trained):
    checkpoint, loader = trained
    whole = encoded(checkpoint, loader)
    statistics = {name: whole.statistics(name) for name in checkpoint.modalities}
    how = {"statistics": statistics, "score": "energy", "stage": -2}
    maps = [saliency_maps(checkpoint, batch, **how)["optical"] for batch in loader]
    clouds = torch.stack([loader.data.clouds(i) for i in loader.indices])
    share = clouds.float().mean((1, 2))
    plain = (share > 0.05) & (share < 0.95)
    saliency = torch.cat([found["unique"] for found in maps])[plain].flatten(1)
    mask = clouds[plain].flatten(1)
    hit = mask.gather(1, saliency.argmax(1, keepdim=True)).float().mean()
    chance = mask.float().mean()
    assert hit > chance + 3 * (chance * (1 - chance) / len(mask)) ** 0.5


@pytest.mark.slow
def test_common_maps_agree_about_the_scene_and_unique_ones_do_not(trained):
    arrays = spatial(*trained, score="energy", stage=-2)
    gain = {
        part: np.nanmean(arrays[f"optical-sar/{part}/overlap"])
        - np.nanmean(arrays[f"optical-sar/{part}/other"])
        for part in ("common", "unique")
    }
    assert gain["common"] > 0.05
    assert gain["unique"] < gain["common"] / 2


@pytest.mark.slow
def test_a_band_of_noise_is_the_least_important(trained):
    checkpoint, loader = trained
    arrays = spectral(checkpoint, loader, settings=SpectralSettings(samples=64))
    assert arrays["optical/bands"][-1] == "noise"
    for part in ("common", "unique"):
        exchanged = arrays[f"optical/{part}/exchanged"].mean(0)
        assert exchanged[-1] == exchanged.min()
        assert exchanged[-1] < 0.6 / len(exchanged)
        assert arrays[f"optical/{part}/importance"].mean(0)[-1] < 0.6 / len(exchanged)
