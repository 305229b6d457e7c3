import itertools
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader

from decur.data import Collate, SyntheticScenes
from decur.data.generated.scenes import CLASSES
from decur.errors import ConfigError

SENSORS = ("optical", "sar", "elevation")


@cache
def scenes():
    """One batch of 600 scenes of 64 px."""
    data = SyntheticScenes(600, seed=5)
    return Collate(data.modalities, data.targets)([data[i] for i in range(len(data))])


def same(a, b):
    return all(torch.equal(a["images"][name], b["images"][name]) for name in a["images"])


def test_shapes_types_and_targets():
    data = SyntheticScenes(3, size=32)
    sample = data[2]
    shapes = {name: tuple(image.shape) for name, image in sample["images"].items()}
    assert shapes == {"optical": (6, 32, 32), "sar": (2, 32, 32), "elevation": (1, 32, 32)}
    for name, image in sample["images"].items():
        assert image.dtype == torch.float32
        assert image.isfinite().all()
        assert len(image) == data.modalities[name].channels
        assert data.modalities[name].size == (32, 32)
    target = sample["target"]
    assert (target["mask"].shape, target["mask"].dtype) == ((32, 32), torch.int64)
    assert target["cover"].shape == (6,)
    assert all(target[name].dtype == torch.float32 for name in ("cloud", "moisture", "relief"))
    seen_by = {name: target.modalities for name, target in data.targets.items()}
    assert seen_by == {
        "cover": (),
        "mask": (),
        "cloud": ("optical",),
        "moisture": ("sar",),
        "relief": ("elevation",),
    }
    assert len(data) == 3
    with pytest.raises(IndexError):
        data[3]


def test_a_scene_depends_on_seed_and_number_alone():
    data = SyntheticScenes(8)
    assert same(data[5], data[5])
    assert not same(data[5], data[4])
    assert same(data[5], SyntheticScenes(3, start=4)[1])
    assert data.ids[5] == SyntheticScenes(3, start=4).ids[1]
    assert not same(data[5], SyntheticScenes(8, seed=1)[5])
    alone = SyntheticScenes(8, modalities=["sar"])
    assert torch.equal(alone[5]["images"]["sar"], data[5]["images"]["sar"])
    assert list(alone.targets) == ["cover", "mask", "moisture"]


def test_workers_make_the_same_scenes():
    data = SyntheticScenes(8, size=16)
    collate = Collate(data.modalities, data.targets)
    alone, worker = (
        torch.cat(
            [
                b["images"]["optical"]
                for b in DataLoader(data, 3, False, num_workers=n, collate_fn=collate)
            ]
        )
        for n in (0, 2)
    )
    assert torch.equal(alone, worker)


def test_statistics_of_the_modalities_hold():
    data = SyntheticScenes(1)
    for name, modality in data.modalities.items():
        images = scenes()["images"][name]
        std = torch.tensor(modality.std)
        assert ((images.mean((0, 2, 3)) - torch.tensor(modality.mean)).abs() < 0.15 * std).all()
        assert ((images.std((0, 2, 3)) / std - 1).abs() < 0.1).all()
        scaled = modality.scale(scenes()["images"][name][:100])
        inside = ((scaled > 0) & (scaled < 1)).float().mean()
        assert inside > 0.9


@pytest.mark.parametrize("size", [16, 33, 80])
def test_statistics_hold_at_other_sizes(size):
    data = SyntheticScenes(100, size=size)
    for name, modality in data.modalities.items():
        images = torch.stack([data[i]["images"][name] for i in range(len(data))])
        std = torch.tensor(modality.std)
        assert ((images.mean((0, 2, 3)) - torch.tensor(modality.mean)).abs() < 0.4 * std).all()


def test_targets_agree_with_the_mask():
    mask, cover = scenes()["target"]["mask"], scenes()["target"]["cover"]
    shares = torch.stack([(mask == k).float().mean((1, 2)) for k in range(len(CLASSES))], 1)
    assert torch.equal(cover, (shares >= 0.02).float())
    assert ((cover.mean(0) > 0.3) & (cover.mean(0) < 0.75)).all()


def test_factors_are_independent():
    target = scenes()["target"]
    columns = {name: target[name].numpy() for name in ("cloud", "moisture", "relief")}
    columns |= {name: target["cover"][:, k].numpy() for k, name in enumerate(CLASSES)}
    unique = ("cloud", "moisture", "relief")
    layers = ("water", "forest", "built")
    bound = 4 / np.sqrt(600)
    for a, b in itertools.product(unique, columns):
        if a != b:
            assert abs(np.corrcoef(columns[a], columns[b])[0, 1]) < bound, (a, b)
    for a, b in itertools.combinations(layers, 2):
        assert abs(np.corrcoef(columns[a], columns[b])[0, 1]) < bound, (a, b)


@cache
def features(sensor):
    """What a small network could compute: moments and quantiles of bands and of their steps."""
    x = scenes()["images"][sensor].numpy()
    if sensor == "sar":
        x = np.concatenate([x, x[:, :1] - x[:, 1:]], 1)
    flat = x.reshape(len(x), x.shape[1], -1)
    steps = np.abs(np.diff(x, axis=-1)).reshape(len(x), x.shape[1], -1)
    quantiles = np.quantile(flat[:, :, ::4], np.linspace(0.05, 0.95, 10), axis=2)
    bright = (flat[:, :1, :] > 0.5).mean(2)
    parts = [flat.mean(2), flat.std(2), steps.mean(2), bright, *quantiles]
    return np.concatenate(parts, 1)


def explained(sensor, values):
    """Cross-validated R2 of a ridge regression."""
    model = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 4, 6)))
    found = cross_val_predict(model, features(sensor), values, cv=3)
    return 1 - ((values - found) ** 2).sum() / ((values - values.mean()) ** 2).sum()


@pytest.mark.parametrize(
    ("factor", "sensor"), [("cloud", "optical"), ("moisture", "sar"), ("relief", "elevation")]
)
def test_a_unique_factor_is_seen_by_its_sensor_alone(factor, sensor):
    values = scenes()["target"][factor].double().numpy()
    scores = {name: explained(name, values) for name in SENSORS}
    assert scores.pop(sensor) > 0.5
    assert max(scores.values()) < 0.05, scores


@pytest.mark.parametrize("sensor", SENSORS)
def test_the_shared_factor_is_seen_by_all(sensor):
    water = scenes()["target"]["cover"][:, 0].double().numpy()
    assert explained(sensor, water) > 0.1


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"modalities": ["lidar"]}, "choose from optical, sar, elevation"),
        ({"modalities": []}, "choose from"),
        ({"modalities": ["sar", "sar"]}, "each once"),
        ({"samples": 0}, "samples must be at least 1"),
        ({"size": 8}, "size must be at least 16"),
        ({"start": -1}, "start must be at least 0"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ConfigError, match=match):
        SyntheticScenes(**arguments)


def test_clouds_are_where_they_hide_the_ground():
    data = SyntheticScenes(40, size=32, seed=2, modalities=["sar", "optical"])
    shares = [float(data[i]["target"]["cloud"]) for i in range(40)]
    masks = [data.clouds(i) for i in range(40)]
    assert [float(m.float().mean()) for m in masks] == pytest.approx(shares)
    assert masks[0].shape == (32, 32)
    cloudy = max(range(40), key=shares.__getitem__)
    blue = data[cloudy]["images"]["optical"][0]
    assert blue[masks[cloudy]].mean() > 2 * blue[~masks[cloudy]].mean()
    with pytest.raises(IndexError):
        data.clouds(40)


def test_a_band_of_noise_changes_nothing_else():
    plain, noisy = (SyntheticScenes(20, size=32, seed=2, noise=noise) for noise in (False, True))
    bands = noisy.modalities["optical"]
    assert bands.bands == (*plain.modalities["optical"].bands, "noise")
    for i in range(20):
        one, other = plain[i]["images"], noisy[i]["images"]
        assert torch.equal(one["optical"], other["optical"][:6])
        assert torch.equal(one["sar"], other["sar"])
        assert torch.equal(one["elevation"], other["elevation"])
    extra = torch.stack([noisy[i]["images"]["optical"][6] for i in range(20)])
    assert float(extra.mean()) == pytest.approx(bands.mean[6], abs=0.01)
    assert float(extra.std()) == pytest.approx(bands.std[6], abs=0.01)
    flat = extra.flatten(1).numpy()
    assert abs(np.corrcoef(flat) - np.eye(20)).max() < 0.15
