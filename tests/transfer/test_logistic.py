"""The logistic probe: the minimum it says it is, and its C chosen as the ridge's penalty is."""

import json

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decur.data import Target
from decur.transfer import probe
from decur.transfer.probe import LOGISTIC, fit_logistic, fit_ridge
from decur.transfer.tasks import make_task


def task_of(classes: int):
    return make_task("y", Target("class", tuple("abcdef"[:classes])))


def planted(count: int, classes: int, noise: float = 0.5):
    """Features of all scales, and classes by which of the first is largest."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(count, 20))
    labels = (z[:, :classes] + noise * rng.normal(size=(count, classes))).argmax(axis=1)
    return (z * rng.uniform(0.1, 10, 20) + 5).astype(np.float32), labels


def test_the_layer_minimises_the_penalised_cross_entropy():
    x, labels = planted(300, 4)
    layer, c = fit_logistic(x, labels, task_of(4))
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
    layer, c = fit_logistic(x, labels, task_of(2))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    expected = model.fit(x.astype(np.float64), labels).predict_proba(x)
    found = layer(torch.from_numpy(x)).softmax(dim=1).detach().numpy()
    assert np.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 5])
def test_what_is_planted_is_found(classes):
    x, labels = planted(800, classes, noise=0.2)
    layer, _ = fit_logistic(x[:500], labels[:500], task_of(classes))
    with torch.no_grad():
        guess = layer(torch.from_numpy(x[500:])).argmax(dim=1).numpy()
    assert (guess == labels[500:]).mean() > 0.8


def test_a_class_without_a_sample_is_never_the_answer():
    x, labels = planted(100, 3)
    layer, _ = fit_logistic(x, np.array([0, 2, 4])[labels], task_of(5))
    with torch.no_grad():
        output = layer(torch.from_numpy(x))
    assert set(output.argmax(dim=1).tolist()) == {0, 2, 4}
    assert output.isfinite().all() and (output.softmax(dim=1)[:, [1, 3]] == 0).all()
    layer, _ = fit_logistic(x, np.full(100, 1), task_of(3))  # one class only
    assert (layer(torch.from_numpy(x)).argmax(dim=1) == 1).all()


def test_a_handful_of_samples_still_gives_a_head(caplog):
    layer, c = fit_logistic(np.eye(2, dtype=np.float32), np.array([0, 1]), task_of(2))
    assert c == pytest.approx(0.1) and layer.weight.isfinite().all()
    assert "too few to choose" in caplog.text


@pytest.mark.parametrize("groups", [None, np.arange(120) % 10])
def test_c_is_the_most_accurate_on_the_parts_that_choose_the_ridge(groups, monkeypatch):
    seen = []
    real = probe._validation
    monkeypatch.setattr(probe, "_validation", lambda *a: (seen.append(real(*a)), seen[-1])[1])
    x, labels = planted(120, 3, noise=1)
    fit_ridge(x, labels, task_of(3), groups, seed=3)
    _, chosen = fit_logistic(x, labels, task_of(3), groups, seed=3)
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


def test_the_command_takes_it_for_classes(bright, transferred):
    folder = transferred(f"--data.root={bright}", "--modalities", "s1", "--probe=logistic")
    found = json.loads((folder / "results.json").read_text())
    assert found["metrics"]["accuracy"]["value"] == 1.0
    assert found["model"] == "linear head (logistic)" and found["regularisation"] in LOGISTIC
    assert found["fit"] is None


@pytest.mark.parametrize(("target", "kind"), [("cover", "multilabel"), ("moisture", "scalar")])
def test_the_command_refuses_it_for_others(target, kind, refused):
    scenes = ["--data=SyntheticScenes", "--data.samples=60", "--data.size=32"]
    line = refused(*scenes, f"--target={target}", "--probe=logistic")
    assert f"{target!r} is a {kind}; take ridge" in line


def test_penalties_beyond_those_that_overfit_are_not_tried(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 150))  # 320 to fit, so a weak penalty fits the noise
    labels = (x[:, 0] + 2 * rng.normal(size=400) > 0).astype(np.int64)
    tried = []
    solve = probe._solve_logistic
    monkeypatch.setattr(
        probe,
        "_solve_logistic",
        lambda x, labels, task, c: tried.append(c) or solve(x, labels, task, c),
    )
    _, chosen = fit_logistic(x.astype(np.float32), labels, task_of(2))
    stopped = max(tried)
    tried.clear()
    monkeypatch.setattr(probe, "PATIENCE", len(LOGISTIC))
    _, best = fit_logistic(x.astype(np.float32), labels, task_of(2))
    assert chosen == best and chosen < stopped < max(tried) == LOGISTIC[-1]
