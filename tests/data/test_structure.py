"""Which way things run in scenes of structure: in the spectrum, and in nothing simpler."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch

from decur.data import SyntheticScenes
from decur.data.generated import structure
from decur.errors import ConfigError

SENSORS = ("optical", "sar", "elevation")
SIZE = 48
# What each band shows, where there are factors of each two sensors.
BANDS = {
    "optical": ("layout", "orchards", "terraces", "streets"),
    "sar": ("layout", "orchards", "ditches", "tillage"),
    "elevation": ("layout", "terraces", "ditches", "ridges"),
}


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


def test_scenes_without_factors_of_pairs_are_what_they_were():
    """Numbers of the code that knew no such factors."""
    sample = SyntheticScenes(4, size=SIZE, structure=True)[3]
    sums = {name: float(image.double().sum()) for name, image in sample["images"].items()}
    expected = {"optical": 3494.191, "sar": -55430.327, "elevation": 460538.384}
    assert sums == pytest.approx(expected, rel=1e-5)
    pixel = [0.2246922] * 3 + [0.3102581] * 3
    assert sample["images"]["optical"][:, 5, 7].tolist() == pytest.approx(pixel, abs=1e-5)
    assert {name: int(label) for name, label in sample["target"].items()} == {
        **{"layout": 1, "streets": 2, "tillage": 1, "ridges": 2},
    }


def test_factors_of_pairs_have_bands_and_targets_and_add_to_what_there_was():
    data = SyntheticScenes(4, size=SIZE, structure=True, pair_factors=True, noise=True)
    sample = data[3]
    assert {n: len(x) for n, x in sample["images"].items()} == {
        **{"optical": 5, "sar": 4, "elevation": 4},
    }
    assert {name: target.modalities for name, target in data.targets.items()} == {
        **{"layout": (), "orchards": ("optical", "sar"), "terraces": ("optical", "elevation")},
        **{"ditches": ("sar", "elevation"), "streets": ("optical",), "tillage": ("sar",)},
        "ridges": ("elevation",),
    }
    assert list(sample["target"]) == list(data.targets)
    plain = SyntheticScenes(4, size=SIZE, structure=True)[3]["target"]
    assert {name: sample["target"][name] for name in plain} == plain
    for sensor in SENSORS:
        bands = sample["images"][sensor][:4]
        assert len({tuple(band.flatten().tolist()) for band in bands}) == 4


@pytest.mark.parametrize(
    ("sensors", "seen_by"),
    [
        (
            ["sar", "optical"],  # what both see is what all see
            {
                **{"layout": (), "orchards": (), "terraces": ("optical",), "ditches": ("sar",)},
                **{"tillage": ("sar",), "streets": ("optical",)},
            },
        ),
        (
            ["elevation"],
            {"layout": (), **dict.fromkeys(("terraces", "ditches", "ridges"), ("elevation",))},
        ),
    ],
)
def test_a_sensor_that_is_left_out_changes_nothing_of_pairs(sensors, seen_by):
    options = {"size": SIZE, "structure": True, "pair_factors": True}
    whole = SyntheticScenes(4, **options)[3]
    data = SyntheticScenes(1, start=3, modalities=sensors, **options)
    assert {name: target.modalities for name, target in data.targets.items()} == seen_by
    for part, names in (("images", sensors), ("target", seen_by)):
        found = data[0][part]
        assert list(found) == list(names)
        assert all(torch.equal(found[name], whole[part][name]) for name in names)


def test_what_factors_of_pairs_need_is_refused_in_a_line():
    with pytest.raises(ConfigError, match=r"pair_factors.*set structure to true"):
        SyntheticScenes(1, pair_factors=True)
    rng = np.random.default_rng(0)
    shared = [structure.draw_strips(rng, SIZE) for _ in range(3)]
    with pytest.raises(ConfigError, match=r"sar sees 4 factors .* 3 bands; give it 4 or more"):
        structure.see(rng, shared, "sar", 3)
    more = structure.see(rng, shared, "sar", 6)[0]
    same = [bool((one == following).all()) for one, following in pairwise(more)]
    assert same == [True, False, True, False, False]


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
def scenes(pair_factors=False):
    data = SyntheticScenes(150, size=SIZE, seed=2, structure=True, pair_factors=pair_factors)
    return data, [data[i] for i in range(150)]


@pytest.mark.parametrize(("pair_factors", "bands"), [(False, (0, -1)), (True, (1, 2))])
def test_means_and_amounts_tell_no_class_and_statistics_hold(pair_factors, bands):
    data, samples = scenes(pair_factors)
    for sensor in SENSORS:
        for band in bands:
            images = torch.stack([s["images"][sensor][band] for s in samples]).double()
            mean, std = data.modalities[sensor].mean[band], data.modalities[sensor].std[band]
            amounts = torch.stack([images.mean((1, 2)), images.std((1, 2))], 1)
            assert float(amounts[:, 0].mean()) == pytest.approx(mean, abs=0.02 * std)
            assert float(amounts[:, 1].mean()) == pytest.approx(std, rel=0.02)
            for factor, target in data.targets.items():
                if target.modalities and sensor not in target.modalities:
                    continue
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


def check_what_a_band_tells(samples, sensor, band, shown):
    """Check that a band's spectrum tells the direction of one factor, and of all others none."""
    found = told_by_the_spectrum(samples, sensor, band)
    for factor in samples[0]["target"]:
        labels = np.array([int(s["target"][factor]) for s in samples])
        right = float((found == labels).mean())
        if factor == shown:
            assert right > 0.8
        else:
            assert right < 1 / 3 + 0.12, factor


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("band", [0, -1])
def test_the_spectrum_of_a_band_tells_its_own_direction_and_no_other(sensor, band):
    shown = "layout" if band == 0 else structure.OWN[sensor]
    check_what_a_band_tells(scenes()[1], sensor, band, shown)


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("band", range(4))
def test_both_sensors_of_a_pair_show_its_factor_and_the_third_does_not(sensor, band):
    check_what_a_band_tells(scenes(True)[1], sensor, band, BANDS[sensor][band])


def test_two_sensors_show_the_factor_of_their_pair_in_brightness_of_their_own():
    samples = scenes(True)[1]
    for (a, b), factor in structure.PAIRS.items():
        pictures = [
            torch.stack([s["images"][name][BANDS[name].index(factor)] for s in samples]).flatten(1)
            for name in (a, b)
        ]
        one, other = (x - x.mean(1, keepdim=True) for x in pictures)
        alike = torch.nn.functional.cosine_similarity(one, other)  # of the pictures of each scene
        assert abs(float(alike.mean())) < 0.01
