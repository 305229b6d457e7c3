"""Probes: what is planted is found, the minimum is the one it says it is, groups stay whole."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decur import probes
from decur.data import Target
from decur.probes import (
    LOGISTIC,
    fit_logistic,
    fit_ridge,
    quick_probe,
    score,
    validation_parts,
)


@pytest.mark.parametrize(
    ("kind", "labels_of"),
    [
        ("class", lambda x: (x[:, 3] > 0).astype(np.int64)),
        ("multilabel", lambda x: (x[:, [3, 5]] > 0).astype(np.float32)),
        ("scalar", lambda x: 100 + 20 * x[:, 3]),
    ],
)
def test_the_ridge_finds_what_is_planted(kind, labels_of):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(600, 30)) * rng.uniform(0.1, 10, 30) + 5).astype(np.float32)
    planted = (x - x.mean(0)) / x.std(0)
    labels = labels_of(planted)
    target = Target(kind, () if kind == "scalar" else ("a", "b"))
    layer, strength = fit_ridge(x[:400], labels[:400], target)
    with torch.no_grad():
        output = layer(torch.from_numpy(x[400:]))
    found = score(output.numpy(), labels[400:], target)
    assert found > (0.85 if kind == "class" else 0.95) and strength <= 100
    noise = rng.permutation(labels[:400])
    assert fit_ridge(x[:400], noise, target)[1] > strength or kind != "scalar"


def test_the_ridge_never_sees_a_held_out_group_it_chooses_by():
    """Features that name the group and labels that follow it: worthless on other groups."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 10)
    x = np.concatenate([np.eye(40)[groups], rng.normal(size=(400, 5))], axis=1).astype(np.float32)
    labels = rng.normal(size=40)[groups].astype(np.float32)
    target = Target("scalar")
    leaky, honest = fit_ridge(x, labels, target)[1], fit_ridge(x, labels, target, groups)[1]
    assert leaky <= 1 and honest >= 100


def test_a_handful_of_samples_still_gives_a_ridge(caplog):
    target = Target("class", ("a", "b"))
    layer, strength = fit_ridge(np.eye(2, dtype=np.float32), np.array([0, 1]), target)
    assert strength == 100 and torch.isfinite(layer.weight).all()
    assert "too few" in caplog.text


def test_a_validation_part_without_the_metric_does_not_stop_the_choice(caplog):
    """R2 of a part of one sample is undefined."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    labels, target = (x[:, 0] * 5).astype(np.float32), Target("scalar")
    groups = np.array([0] + [1] * 20 + [2] * 19)
    parts = validation_parts(labels, target, groups, 1)
    assert {len(held) for _, held in parts} == {1, 20}
    assert fit_ridge(x, labels, target, groups, seed=1)[1] < 100 and not caplog.messages
    fit_ridge(x[:2], labels[:2], target, np.array([0, 1]))
    assert "no validation part defines R2; the probe's regularisation is 100" in caplog.text


@pytest.mark.parametrize("kind", ["class", "multilabel", "scalar"])
def test_a_probe_finds_what_is_there_and_nothing_else(kind):
    rng = np.random.default_rng(0)
    factor = rng.normal(size=400)
    informative = np.stack([factor, *rng.normal(size=(5, 400))], axis=1).astype(np.float32)
    noise = rng.normal(size=(400, 6)).astype(np.float32)
    labels = {
        "class": (factor > 0).astype(int),
        "multilabel": np.stack([factor > 0, factor > 0.5], axis=1).astype(np.float32),
        "scalar": factor,
    }[kind]
    scores = quick_probe({"a": informative, "b": noise}, labels, Target(kind, ("x", "y")))
    chance = {"class": 0.5, "multilabel": labels.mean(), "scalar": 0.0}[kind]
    assert scores["a/linear"] > 0.95 and scores["a+b/linear"] > 0.85
    assert scores["a/knn"] > 0.6
    assert abs(scores["b/linear"] - chance) < 0.12 and abs(scores["b/knn"] - chance) < 0.15


def test_a_probe_leaves_out_unknown_labels_absent_sensors_and_split_groups():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float32)
    x[::5], y[1::5] = np.nan, -1
    assert quick_probe({"a": x}, y, Target("class", ("no", "yes")))["a/linear"] > 0.9
    # a label that only names the group cannot be told for groups that were not seen
    groups = [f"g{i // 10}" for i in range(200)]
    member = np.repeat(np.arange(20), 10).astype(np.float32)
    code = np.eye(20, dtype=np.float32)[member.astype(int)]
    target = Target("class", tuple(map(str, range(20))))
    assert quick_probe({"a": code}, member, target, groups)["a/linear"] < 0.2
    assert quick_probe({"a": code}, member, target)["a/linear"] > 0.8
    assert quick_probe({"a": x[:10]}, y[:10], Target("class", ("no", "yes"))) == {}
    assert quick_probe({"a": x}, y, Target("class", ("no", "yes")), ["one"] * 200) == {}


def target_of(classes: int):
    return Target("class", tuple("abcdef"[:classes]))


def planted(count: int, classes: int, noise: float = 0.5):
    """Features of all scales, and classes by which of the first is largest."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 20))
    labels = (z[:, :classes] + noise * rng.normal(size=(count, classes))).argmax(axis=1)
    return (z * rng.uniform(0.1, 10, 20) + 5).astype(np.float32), labels


def test_the_layer_minimises_the_penalised_cross_entropy():
    x, labels = planted(300, 4)
    layer, c = fit_logistic(x, labels, target_of(4))
    mean, scale = x.astype(np.float64).mean(0), x.astype(np.float64).std(0)
    weight = layer.weight.detach().double().numpy() * scale  # (4, D), on standardised features
    bias = layer.bias.detach().double().numpy() + layer.weight.detach().double().numpy() @ mean
    z = (x - mean) / scale
    logits = z @ weight.T + bias
    share = np.exp(logits - logits.max(axis=1, keepdims=True))
    error = share / share.sum(axis=1, keepdims=True) - np.eye(4)[labels]  # (N, 4)
    slope = c * error.T @ z + weight
    assert np.abs(slope).max() < 1e-2 * c * np.abs(np.eye(4)[labels].T @ z).max()
    assert np.abs(c * error.sum(axis=0)).max() < 1e-2 * c * len(x)


def test_two_classes_have_the_probabilities_of_scikit_learn():
    x, labels = planted(200, 2)
    layer, c = fit_logistic(x, labels, target_of(2))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    expected = model.fit(x.astype(np.float64), labels).predict_proba(x)
    found = layer(torch.from_numpy(x)).softmax(dim=1).detach().numpy()
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_what_is_planted_is_found(classes):
    x, labels = planted(800, classes, noise=0.2)
    layer, _ = fit_logistic(x[:500], labels[:500], target_of(classes))
    with torch.no_grad():
        guess = layer(torch.from_numpy(x[500:])).argmax(dim=1).numpy()
    assert (guess == labels[500:]).mean() > 0.8


def test_a_class_without_a_sample_is_never_the_answer():
    x, labels = planted(100, 3)
    layer, _ = fit_logistic(x, np.array([0, 2, 4])[labels], target_of(5))
    with torch.no_grad():
        output = layer(torch.from_numpy(x))
    assert set(output.argmax(dim=1).tolist()) == {0, 2, 4}
    assert output.isfinite().all() and (output.softmax(dim=1)[:, [1, 3]] == 0).all()
    layer, _ = fit_logistic(x, np.full(100, 1), target_of(3))  # one class only
    assert (layer(torch.from_numpy(x)).argmax(dim=1) == 1).all()


def test_a_handful_of_samples_still_gives_a_head(caplog):
    layer, c = fit_logistic(np.eye(2, dtype=np.float32), np.array([0, 1]), target_of(2))
    assert c == pytest.approx(0.1) and layer.weight.isfinite().all()
    assert "too few to choose" in caplog.text


@pytest.mark.parametrize("groups", [None, np.arange(120) % 10])
def test_c_is_the_most_accurate_on_the_parts_that_choose_the_ridge(groups, monkeypatch):
    seen = []
    real = probes.validation_parts
    monkeypatch.setattr(probes, "validation_parts", lambda *a: (seen.append(real(*a)), seen[-1])[1])
    x, labels = planted(120, 3, noise=1)
    fit_ridge(x, labels, target_of(3), groups, seed=3)
    _, chosen = fit_logistic(x, labels, target_of(3), groups, seed=3)
    for (fit, held), (fit_again, held_again) in zip(*seen, strict=True):
        assert (fit == fit_again).all() and (held == held_again).all()
        assert groups is None or not set(groups[fit]) & set(groups[held])
    means = []
    for c in LOGISTIC:
        model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
        parts = [
            model.fit(x[fit].astype(np.float64), labels[fit]).score(x[held], labels[held])
            for fit, held in seen[0]
        ]
        means.append(np.mean(parts))
    assert len(set(means)) > 2 and chosen == LOGISTIC[np.argmax(means)]


def test_penalties_beyond_those_that_overfit_are_not_tried(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 150))  # 320 to fit, so a weak penalty fits the noise
    labels = (x[:, 0] + 2 * rng.normal(size=400) > 0).astype(np.int64)
    tried = []
    solve = probes.solve_logistic
    monkeypatch.setattr(
        probes,
        "solve_logistic",
        lambda x, labels, target, c: tried.append(c) or solve(x, labels, target, c),
    )
    _, chosen = fit_logistic(x.astype(np.float32), labels, target_of(2))
    stopped = max(tried)
    tried.clear()
    monkeypatch.setattr(probes, "PATIENCE", len(LOGISTIC))
    _, best = fit_logistic(x.astype(np.float32), labels, target_of(2))
    assert chosen == best and chosen < stopped < max(tried) == LOGISTIC[-1]
