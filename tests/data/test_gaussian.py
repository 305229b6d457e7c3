"""Gaussian factors: the mixture, the noise and the labels that the documentation promises."""

from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.model_selection import cross_val_score

from decur.data import Collate, LinearGaussianFactors
from decur.errors import ConfigError
from decur.views import Views, sample_seeds

SMALL = {"shared_dims": 3, "unique_dims": 5, "dim": 7}


@cache
def batch():
    """3,000 pairs of one measurement without noise, and their factors."""
    data = LinearGaussianFactors(3000, size=1, noise=0)
    stacked = Collate(data.modalities, data.targets)([data[i] for i in range(len(data))])
    factors = [data.factors(i) for i in range(len(data))]
    return stacked, {name: np.stack([f[name] for f in factors]) for name in factors[0]}


def same(a, b):
    return all(torch.equal(a["images"][name], b["images"][name]) for name in a["images"])


def test_shapes_and_targets():
    data = LinearGaussianFactors(4, **SMALL, size=2)
    sample = data[3]
    assert {n: (tuple(x.shape), x.dtype) for n, x in sample["images"].items()} == {
        "x": ((7, 2, 2), torch.float32),
        "y": ((7, 2, 2), torch.float32),
    }
    assert {n: m.channels for n, m in data.modalities.items()} == {"x": 7, "y": 7}
    assert {n: (t.kind, t.modalities) for n, t in data.targets.items()} == {
        "shared": ("class", ()),
        "unique_x": ("class", ("x",)),
        "unique_y": ("class", ("y",)),
    }
    assert all(v.dtype == torch.int64 and v.ndim == 0 for v in sample["target"].values())
    assert data.shared_share == 3 / 8
    assert LinearGaussianFactors(1).shared_share == 0.5
    with pytest.raises(IndexError):
        data[4]


def test_pictures_are_the_mixture_of_the_factors():
    data = LinearGaussianFactors(3, **SMALL, size=1, noise=0)
    factors, sample = data.factors(2), data[2]
    for name in "xy":
        mixing = data.mixing[name].astype(np.float64)
        own, shared = factors[f"unique_{name}"], factors["shared"]
        expected = [
            sum(own[k] * mixing[k, band] for k in range(5))
            + sum(shared[k] * mixing[5 + k, band] for k in range(3))
            for band in range(7)
        ]
        np.testing.assert_allclose(sample["images"][name].flatten().numpy(), expected, atol=1e-5)


def test_three_sensors_share_factors_by_pairs():
    data = LinearGaussianFactors(
        3, **SMALL, size=1, noise=0, sensors=("x", "y", "z"), pair_dims=2
    ).only(targets=["shared_xz"])
    assert list(data.targets) == ["shared_xz"]
    assert data.targets["shared_xz"].modalities == ("x", "z")
    factors, sample = data.factors(2), data[2]
    assert {name: len(x) for name, x in factors.items()} == {
        **{"shared": 3, "unique_x": 5, "unique_y": 5, "unique_z": 5},
        **{"shared_xy": 2, "shared_xz": 2, "shared_yz": 2},
    }
    latent = [factors[name] for name in ("unique_z", "shared", "shared_xz", "shared_yz")]
    expected = np.concatenate(latent) @ data.mixing["z"]
    np.testing.assert_allclose(sample["images"]["z"].flatten().numpy(), expected, atol=1e-5)
    assert data.shared_share == 5 / 12


def test_factors_are_independent_with_variance_one_half():
    latent = np.concatenate(list(batch()[1].values()), axis=1)  # (3000, 150)
    covariance = np.cov(latent.T)
    bound = 5 * 0.5 / np.sqrt(3000)
    assert np.abs(covariance - 0.5 * np.eye(150)).max() < bound * np.sqrt(2)
    assert np.abs(latent.mean(axis=0)).max() < 5 * np.sqrt(0.5 / 3000)


def test_mixing_is_uniform():
    mixing = np.stack(list(LinearGaussianFactors(1).mixing.values()))
    assert mixing.shape == (2, 100, 100)
    assert -1 <= mixing.min() < -0.99 and 0.99 < mixing.max() <= 1
    assert abs(mixing.mean()) < 0.02 and abs(mixing.var() - 1 / 3) < 0.01
    assert abs(np.corrcoef(mixing[0].ravel(), mixing[1].ravel())[0, 1]) < 0.05


def test_pixels_differ_by_independent_noise_alone():
    data = LinearGaussianFactors(200, **SMALL, size=4, noise=0.7)
    clean = LinearGaussianFactors(200, **SMALL, size=1, noise=0)
    noise = [
        torch.stack([data[i]["images"][n] - clean[i]["images"][n] for i in range(200)])
        for n in "xy"
    ]
    values = torch.stack(noise, 1).flatten(1).double()  # (200, 2 x 7 x 16)
    assert abs(values.std() - 0.7) < 0.01 and abs(values.mean()) < 0.02
    correlation = np.corrcoef(values.T.numpy()) - np.eye(values.shape[1])
    assert np.abs(correlation).max() < 5.5 / np.sqrt(200)


def test_labels_are_balanced_and_independent():
    target = {name: labels.numpy() for name, labels in batch()[0]["target"].items()}
    for name, labels in target.items():
        assert abs(labels.mean() - 0.5) < 0.03, name
    assert np.abs(np.corrcoef(list(target.values())) - np.eye(3)).max() < 4 / np.sqrt(3000)


@pytest.mark.parametrize("label", ["shared", "unique_x", "unique_y"])
def test_a_label_is_seen_where_it_should(label):
    stacked, factors = batch()
    labels = stacked["target"][label].numpy()

    def accuracy(features):
        return cross_val_score(RidgeClassifierCV(), features, labels, cv=2).mean()

    seen = {n: accuracy(stacked["images"][n].flatten(1).numpy()) for n in "xy"}
    for name, score in seen.items():
        if label in ("shared", f"unique_{name}"):
            assert score > 0.75, seen
        else:
            assert score < 0.55, seen
    assert accuracy(factors[label]) > 0.75


def test_a_pair_depends_on_seed_and_number_alone():
    data = LinearGaussianFactors(8, **SMALL)
    assert same(data[5], data[5])
    assert not same(data[5], data[4])
    later = LinearGaussianFactors(3, **SMALL, start=4)
    assert same(data[5], later[1]) and data[5]["target"] == later[1]["target"]
    assert data.ids[5] == later.ids[1]
    assert not same(data[5], LinearGaussianFactors(8, **SMALL, seed=1)[5])


def test_scaling_cuts_nothing_off():
    data = LinearGaussianFactors(200)
    for name, modality in data.modalities.items():
        raw = torch.stack([data[i]["images"][name] for i in range(200)])
        bottom, top = modality.value_range
        assert torch.allclose(modality.scale(raw) * (top - bottom) + bottom, raw, atol=1e-4)


def test_views_of_one_pixel_are_other_measurements_of_the_same():
    data = LinearGaussianFactors(256, noise=1.0)
    clean = LinearGaussianFactors(256, size=1, noise=0)
    stacked = Collate(data.modalities, data.targets)([data[i] for i in range(256)])
    changes = {"crop_scale": [1 / 16, 1 / 16], "crop_ratio": [1.0, 1.0]}
    views = Views(data.modalities, size=1, overrides={"all": changes})
    images = {name: m.scale(stacked["images"][name]) for name, m in data.modalities.items()}
    made = views(images, sample_seeds(stacked["ids"], seed=0, epoch=0))
    for name, modality in data.modalities.items():
        truth = torch.stack([clean[i]["images"][name] for i in range(256)])
        bottom, top = modality.value_range
        first, second = (view * (top - bottom) + bottom - truth for view in made[name])
        for noise in (first, second):
            assert abs(noise.std() - 1) < 0.02 and abs(noise.mean()) < 0.03
        shared = (first * second).mean()  # 1 in 16 pairs of views shows the same pixel
        assert abs(shared - 1 / 16) < 0.06


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"samples": 0}, "samples must be at least 1"),
        ({"shared_dims": 0}, "shared_dims must be at least 1"),
        ({"unique_dims": 0}, "unique_dims must be at least 1"),
        ({"dim": 0}, "dim must be at least 1"),
        ({"noise": -0.1}, "noise must be at least 0"),
        ({"noise": float("nan")}, "noise must be at least 0"),
        ({"start": -1}, "start must be at least 0"),
        ({"sensors": ["x", "x"]}, "sensors are x, x; name two or more"),
        ({"pair_dims": 2}, "sensors are x, y; .* three for pair_dims"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ConfigError, match=match):
        LinearGaussianFactors(**arguments)
