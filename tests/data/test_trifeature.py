"""Bimodal Trifeature: factors independent, splits apart, levels that pictures tell apart."""

import itertools
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from torch.utils.data import DataLoader

from decur.data import BimodalTrifeature, Collate
from decur.data.generated.trifeature import COLOURS, SHAPES, TEXTURES, draw_picture
from decur.errors import ConfigError


@cache
def levels(split):
    """Factors of 20,000 pairs, (20000, 2, 3): a's and b's shape, texture, colour."""
    data = BimodalTrifeature(20_000, split=split)
    return np.array([data.factors(i) for i in range(len(data))])


def same(a, b):
    return all(torch.equal(a["images"][name], b["images"][name]) for name in a["images"])


@pytest.mark.parametrize("size", [32, 64, 97, 224])
def test_shapes_types_and_targets(size):
    data = BimodalTrifeature(3, size=size)
    sample = data[2]
    for name, picture in sample["images"].items():
        assert picture.shape == (3, size, size) and picture.dtype == torch.uint8
        assert data.modalities[name].size == (size, size)
    assert list(sample["images"]) == list(data.modalities) == ["a", "b"]
    assert {n: (len(t.classes), t.modalities) for n, t in data.targets.items()} == {
        "shape": (10, ()),
        "texture_a": (10, ("a",)),
        "texture_b": (10, ("b",)),
        "synergy": (2, ()),
    }
    a, b = data.factors(2)
    target = {name: int(value) for name, value in sample["target"].items()}
    assert target["shape"] == a[0] == b[0]
    assert (target["texture_a"], target["texture_b"]) == (a[1], b[1])
    assert target["synergy"] == int((a[1] + b[2]) % 10 in (0, 1, 2, 3, 4))
    with pytest.raises(IndexError):
        data[3]


def test_ten_levels_of_each():
    assert len(SHAPES) == len(TEXTURES) == len(COLOURS) == 10


def test_the_default_size_of_a_shape_is_that_of_the_protocol():
    disc = draw_picture((0, 0, 9), size=224).any(axis=0)
    assert abs(disc.any(axis=0).sum() - 128) <= 1 and abs(disc.any(axis=1).sum() - 128) <= 1
    assert abs(disc.sum() - np.pi * 64**2) < 0.03 * np.pi * 64**2  # with its soft edge


@pytest.mark.parametrize("size", [32, 64, 97])
def test_no_shape_leaves_the_picture(size):
    room = size * (1 - 128 / 224)
    middle, last = int(room / 2), int(room - 0.5)
    for shape, turn in itertools.product(range(10), (-45, -20, 0, 45)):
        within = draw_picture((shape, 0, 9), size, turn=turn, place=((middle + 0.37) / room,) * 2)
        for down, right in itertools.product((0, last), repeat=2):  # whole pixels from there
            moved = draw_picture(
                (shape, 0, 9), size, turn=turn, place=((down + 0.37) / room, (right + 0.37) / room)
            )
            rolled = np.roll(within, (down - middle, right - middle), axis=(1, 2))
            differing = np.abs(moved.astype(int) - rolled).sum() / within.sum()
            assert differing < 0.03, (shape, turn, down, right)
        corners = [
            draw_picture((shape, 0, 9), size, turn=turn, place=p).sum()
            for p in ((0, 0), (0, 1), (1, 1))
        ]
        assert np.allclose(corners, within.sum(), rtol=0.1)  # an edge falls on other pixels


def test_a_turn_is_a_rotation_of_the_picture():
    drawn = draw_picture((9, 1, 9), 63, turn=90).astype(float)
    turned = np.rot90(draw_picture((9, 1, 9), 63), axes=(1, 2)).astype(float)
    assert np.corrcoef(drawn.ravel(), turned.ravel())[0, 1] > 0.98


def test_splits_hold_different_combinations():
    train, test = ({tuple(c) for c in levels(split).reshape(-1, 3)} for split in ("train", "test"))
    assert (len(train), len(test)) == (800, 200)
    assert not train & test
    other = {tuple(c) for c in BimodalTrifeature(1, split="test", seed=7).combinations}
    assert other == test


def test_a_combination_is_drawn_three_times_for_training_and_once_for_testing():
    for split, drawings in (("train", 2400), ("test", 200)):
        data = BimodalTrifeature(20_000, split=split)
        assert len(np.unique(data.pairs)) == drawings


@pytest.mark.parametrize("split", ["train", "test"])
def test_factors_are_independent(split):
    a, b = levels(split)[:, 0], levels(split)[:, 1]
    columns = {"shape": a[:, 0], "t_a": a[:, 1], "c_a": a[:, 2], "t_b": b[:, 1], "c_b": b[:, 2]}
    assert (a[:, 0] == b[:, 0]).all()
    for (m, x), (n, y) in itertools.combinations(columns.items(), 2):
        table = np.zeros((10, 10))
        np.add.at(table, (x, y), 1)
        chi2 = ((table - 200) ** 2 / 200).sum()  # 99 degrees of freedom: mean 99, std 14
        assert chi2 < 99 + 5 * 14, (m, n)


@pytest.mark.parametrize("split", ["train", "test"])
def test_synergy_is_balanced_whatever_one_picture_says(split):
    combinations = BimodalTrifeature(1, split=split).combinations
    for shape in range(10):  # every pair there can be, exactly
        own = combinations[combinations[:, 0] == shape]
        related = (own[:, None, 1] + own[None, :, 2]) % 10 < 5  # a's texture, b's colour
        assert (related.mean(axis=1) == 0.5).all()  # given all of a's picture
        assert (related.mean(axis=0) == 0.5).all()  # given all of b's


def test_a_sum_of_what_both_say_does_not_tell_the_synergy():
    texture, colour = levels("train")[:, 0, 1], levels("train")[:, 1, 2]
    synergy = (texture + colour) % 10 < 5
    one_hot = np.concatenate((np.eye(10)[texture], np.eye(10)[colour]), axis=1)
    half = len(one_hot) // 2
    probe = LogisticRegression().fit(one_hot[:half], synergy[:half])
    assert abs(probe.score(one_hot[half:], synergy[half:]) - 0.5) < 0.03


def test_a_pair_depends_on_seed_and_number_alone():
    data = BimodalTrifeature(50)
    assert same(data[5], data[5])
    assert not same(data[5], data[4])
    more = BimodalTrifeature(700)
    assert same(data[49], more[49]) and data[49]["target"] == more[49]["target"]
    assert not same(data[5], BimodalTrifeature(50, seed=1)[5])


def test_workers_make_the_same_pairs():
    data = BimodalTrifeature(8, size=32)
    collate = Collate(data.modalities, data.targets)
    alone, worker = (
        torch.cat(
            [b["images"]["b"] for b in DataLoader(data, 3, num_workers=n, collate_fn=collate)]
        )
        for n in (0, 2)
    )
    assert torch.equal(alone, worker)


def test_shapes_differ_at_any_turn():
    turns = range(-45, 46, 15)
    masks = np.array(
        [[draw_picture((s, 0, 9), 64, turn=turn).any(axis=0) for turn in turns] for s in range(10)]
    )
    for s, t in itertools.combinations(range(10), 2):
        both = (masks[s][:, None] & masks[t]).sum((-2, -1))
        either = (masks[s][:, None] | masks[t]).sum((-2, -1))
        assert (both / either).max() < 0.85, (list(SHAPES)[s], list(SHAPES)[t])


def drawings(rng, count):
    """Random levels, turns and places, and the pictures that show them."""
    chosen = rng.integers(0, 10, (count, 3))
    pictures = [
        draw_picture(c, 64, turn=rng.uniform(-45, 45), place=rng.random(2), phase=rng.random(2))
        for c in chosen
    ]
    return chosen, np.array(pictures)


def test_the_mean_pixel_tells_the_colour():
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, 10, (600, 3))
    pictures = np.array([draw_picture(c) for c in chosen])  # unrotated
    mean = pictures.mean((2, 3))
    mean /= np.linalg.norm(mean, axis=1, keepdims=True)
    probe = LogisticRegression(C=1e4, max_iter=2000).fit(mean[:300], chosen[:300, 2])
    assert probe.score(mean[300:], chosen[300:, 2]) > 0.98


def test_the_spectrum_tells_the_texture_at_any_turn():
    chosen, pictures = drawings(np.random.default_rng(1), 2500)
    features = np.array([texture_features(p.max(axis=0)) for p in pictures])
    probe = RandomForestClassifier(100, random_state=0).fit(features[:2000], chosen[:2000, 1])
    assert probe.score(features[2000:], chosen[2000:, 1]) > 0.95


def texture_features(value):
    """Of a picture without colour: histogram of its lightness, power by frequency, anisotropy."""
    light = value[value > 0] / value.max()
    power = np.abs(np.fft.fft2(value / value.max())) ** 2
    fy, fx = np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64)[None]
    ring = (np.hypot(fy, fx) * 64).astype(int).clip(0, 31)
    total = np.bincount(ring.ravel(), power.ravel())
    double = np.exp(2j * np.arctan2(fy, fx))  # of an axis, not of a direction
    second = np.abs(
        np.bincount(ring.ravel(), (power * double.real).ravel())
        + 1j * np.bincount(ring.ravel(), (power * double.imag).ravel())
    )
    fourth = np.abs(
        np.bincount(ring.ravel(), (power * (double**2).real).ravel())
        + 1j * np.bincount(ring.ravel(), (power * (double**2).imag).ravel())
    )
    histogram = np.histogram(light, 8, (0, 1), density=True)[0]
    return np.concatenate((histogram, np.log(total), second / total, fourth / total))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"size": 16}, "size must be at least 32"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"split": "val"}, "choose from train, test"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ConfigError, match=match):
        BimodalTrifeature(**arguments)
