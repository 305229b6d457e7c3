"""Which way things run in scenes of structure: in the spectrum, and in nothing simpler."""

from functools import cache

import numpy as np
import pytest
import torch

from decur.data import SyntheticScenes
from decur.data.generated import structure
from decur.errors import ConfigError

SENSORS = ("optical", "sar", "elevation")
SIZE = 48


def test_shapes_targets_and_who_sees_them():
    data = SyntheticScenes(4, size=SIZE, structure=True, noise=True)
    sample = data[3]
    assert {n: tuple(x.shape) for n, x in sample["images"].items()} == {
        "optical": (7, SIZE, SIZE),
        "sar": (2, SIZE, SIZE),
        "elevation": (2, SIZE, SIZE),
    }
    assert {name: target.modalities for name, target in data.targets.items()} == {
        "layout": (),
        "streets": ("optical",),
        "tillage": ("sar",),
        "ridges": ("elevation",),
    }
    assert all(x.dtype == torch.float32 for x in sample["images"].values())
    assert all(value.dtype == torch.int64 for value in sample["target"].values())
    alone = SyntheticScenes(2, size=SIZE, structure=True, modalities=["sar"], start=3)[0]
    assert torch.equal(alone["images"]["sar"], sample["images"]["sar"])
    assert list(alone["target"]) == ["layout", "tillage"]
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(ConfigError, match="no clouds"):
        data.clouds(0)


@pytest.mark.parametrize("size", [32, 33])
def test_faint_strips_have_mean_and_variance_whatever_their_direction(size):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        strips = structure.draw_strips(rng, size)
        pictures = np.stack([structure._faint(rng, strips) for _ in range(300)])
        assert pictures.mean() == pytest.approx(0, abs=0.01)
        assert pictures.var(0).mean() == pytest.approx(1, abs=0.01)
        one, another = (pictures[:, strips.numbers == k].mean(1) for k in common_strips(strips))
        alike = structure._STRIPS**2 / (1 + structure._STRIPS**2)
        assert one.var() == pytest.approx(alike, rel=0.4)  # pixels of a strip share its brightness
        assert abs(np.mean(one * another)) < 0.4 * alike  # and no other strip's


def common_strips(strips):
    """Return the two strips with the most pixels."""
    return np.argsort(-np.bincount(strips.numbers.ravel()))[:2]


def test_strips_run_as_their_direction_says():
    steps = {0: [], 1: [], 2: []}
    for seed in range(30):
        fields = structure.draw_strips(np.random.default_rng(seed), SIZE)
        across, down = (np.abs(np.diff(fields.numbers, axis=axis)).mean() for axis in (1, 0))
        steps[fields.direction].append(across / (across + down))
    level, slanted, upright = (np.mean(steps[k]) for k in range(3))
    assert level < 0.15 < 0.4 < slanted < 0.6 < 0.85 < upright
    assert structure.DIRECTIONS == ("level", "slanted", "upright")


@cache
def scenes():
    data = SyntheticScenes(150, size=SIZE, seed=1, structure=True)
    return data, [data[i] for i in range(150)]


def test_means_and_amounts_tell_no_class_and_statistics_hold():
    data, samples = scenes()
    for sensor in SENSORS:
        for band in (0, -1):
            images = torch.stack([s["images"][sensor][band] for s in samples]).double()
            mean, std = data.modalities[sensor].mean[band], data.modalities[sensor].std[band]
            amounts = torch.stack([images.mean((1, 2)), images.std((1, 2))], 1)
            assert float(amounts[:, 0].mean()) == pytest.approx(mean, abs=0.02 * std)
            assert float(amounts[:, 1].mean()) == pytest.approx(std, rel=0.02)
            for factor in ("layout", structure.OWN[sensor]):
                labels = torch.stack([s["target"][factor] for s in samples])
                for k in range(3):
                    of_class = amounts[labels == k].mean(0)
                    assert ((of_class - amounts.mean(0)).abs() < 0.01 * std).all()


def told_by_the_spectrum(samples, sensor, band):
    """Return the direction of most energy where strips of a band have theirs."""
    down, right = np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None]
    radius = np.hypot(down, right)
    coarse = (radius > 1.5 / SIZE) & (radius < 1 / 5)
    folded = np.degrees(np.arctan2(np.abs(down), np.abs(right)))  # 0 upright, 90 level
    sectors = [coarse & (np.abs(folded - degrees) < 10) for degrees in (90, 45, 0)]
    power = [np.abs(np.fft.fft2(s["images"][sensor][band].double())) ** 2 for s in samples]
    return np.argmax([[float(p[sector].mean()) for sector in sectors] for p in power], axis=1)


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("band", [0, -1])
def test_the_spectrum_of_a_band_tells_its_own_direction_and_no_other(sensor, band):
    samples = scenes()[1]
    found = told_by_the_spectrum(samples, sensor, band)
    shown = "layout" if band == 0 else structure.OWN[sensor]
    for factor in ("layout", *structure.OWN.values()):
        labels = np.array([int(s["target"][factor]) for s in samples])
        right = float((found == labels).mean())
        if factor == shown:
            assert right > 0.8
        else:
            assert right < 1 / 3 + 0.12, factor
