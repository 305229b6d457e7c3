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
        "elevation": (1, SIZE, SIZE),
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
def test_waves_differ_in_direction_alone(size):
    rng = np.random.default_rng(0)
    down, right = np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)[None]
    radius, folded = np.hypot(down, right), np.degrees(np.arctan2(np.abs(down), np.abs(right)))
    for degrees in (0, 45, 90):
        waves = np.stack([structure._waves(rng, size, np.radians(degrees)) for _ in range(20)])
        assert np.allclose(waves.mean((1, 2)), 0, atol=1e-12)
        assert np.allclose(waves.std((1, 2)), 1)
        power = (np.abs(np.fft.fft2(waves)) ** 2).mean(0) / size**4  # 1 in all
        assert float((power * radius).sum()) == pytest.approx(1 / structure._PERIOD, rel=0.03)
        assert float((power * folded).sum()) == pytest.approx(degrees, abs=5)


def test_strips_run_as_their_direction_says():
    steps = {0: [], 1: [], 2: []}
    for seed in range(30):
        fields = structure.draw_fields(np.random.default_rng(seed), SIZE)
        across, down = (np.abs(np.diff(fields.strips, axis=axis)).mean() for axis in (1, 0))
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
        images = torch.stack([s["images"][sensor][0] for s in samples]).double()
        mean, std = data.modalities[sensor].mean[0], data.modalities[sensor].std[0]
        amounts = torch.stack([images.mean((1, 2)), images.std((1, 2))], 1)
        assert float(amounts[:, 0].mean()) == pytest.approx(mean, abs=0.02 * std)
        assert float(amounts[:, 1].mean()) == pytest.approx(std, rel=0.02)
        for factor in ("layout", structure.OWN[sensor]):
            labels = torch.stack([s["target"][factor] for s in samples])
            for k in range(3):
                of_class = amounts[labels == k].mean(0)
                assert ((of_class - amounts.mean(0)).abs() < 0.01 * std).all()


def told_by_the_spectrum(samples, sensor):
    """Return the direction of most energy where a sensor's own waves have theirs."""
    down, right = np.fft.fftfreq(SIZE)[:, None], np.fft.fftfreq(SIZE)[None]
    near = np.abs(np.hypot(down, right) - 0.25) < 1 / 32
    folded = np.degrees(np.arctan2(np.abs(down), np.abs(right)))  # 0 upright, 90 level
    sectors = [near & (np.abs(folded - degrees) < 8) for degrees in (90, 45, 0)]
    power = [np.abs(np.fft.fft2(s["images"][sensor][0].double())) ** 2 for s in samples]
    peaks = [[float(np.max(p[sector])) for sector in sectors] for p in power]
    return np.argmax(peaks, axis=1)


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_right_filter_tells_a_sensors_own_direction_and_no_other_sensors(sensor):
    samples = scenes()[1]
    found = told_by_the_spectrum(samples, sensor)
    for other in SENSORS:
        labels = np.array([int(s["target"][structure.OWN[other]]) for s in samples])
        right = float((found == labels).mean())
        if other == sensor:
            assert right > 0.8
        else:
            assert right < 1 / 3 + 0.12, other
