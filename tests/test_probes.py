"""Probes: what is planted is found, the minimum is the one it says it is, groups stay whole."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from decur import probes
from decur.agreement import coordinates, predicted
from decur.data import Target
from decur.probes import (
    LOGISTIC,
    _quick_scores,
    fit_chosen,
    fit_logistic,
    fit_ridge,
    quick_probe,
    score_of_neighbours,
)
from decur.scores import chance, score, split, standardised, validation_parts


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
    assert scores["b/chance"] == pytest.approx(chance, abs=0.06)
    assert scores["a/linear"] > 0.95 and scores["a+b/linear"] > 0.85
    assert scores["a/knn"] > 0.6
    assert abs(scores["b/linear"] - chance) < 0.12 and abs(scores["b/knn"] - chance) < 0.15


@pytest.mark.parametrize("samples", [20, 80])
def test_neighbours_that_tell_nothing_have_the_r2_of_a_guess(samples):
    """The plain R2 of means over k neighbours is -0.90 and -0.15 for so many samples."""
    rng = np.random.default_rng(0)
    found = []
    for seed in range(30):
        x, y = rng.normal(size=(samples, 2)).astype(np.float32), rng.normal(size=samples)
        train, test = split(samples, None, seed, share=0.5, fewest_groups=2)
        rows = x, y, Target("scalar"), None, seed
        found.append(_quick_scores(*rows)["knn"])
        k = min(20, len(train) // 4)
    assert abs(np.mean(found)) < 3 * np.std(found) / len(found) ** 0.5 + 0.005
    # that of the last samples, by hand
    near = ((standardised(x, train)[test, None] - standardised(x, train)[train]) ** 2).sum(-1)
    means = y[train][near.argsort(1)[:, :k]].mean(1)
    drawn = [rng.choice(y[train], k, replace=False).mean() for _ in range(1500)]
    random = np.mean([(y[test] - mean) ** 2 for mean in drawn])
    assert found[-1] == pytest.approx(1 - np.mean((y[test] - means) ** 2) / random, abs=0.03)


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


def test_patience_begins_once_something_beats_the_most_frequent_class():
    """Validation accuracy that dips under the majority before it rises must not end the search."""
    rng = np.random.default_rng(0)
    labels = rng.choice(2, 100, p=[0.7, 0.3])
    x = np.stack([2 * labels - 1.0, rng.normal(size=100)], 1).astype(np.float32)
    biases = {1.0: [1, 0], 2.0: [0, 1], 3.0: [0, 1], 4.0: [0, 0], 5.0: [0, 1], 6.0: [0, 1]}

    def solve(features, labels, target, strength):
        knows = float(strength in (4.0, 7.0))
        return np.array([[-knows, 0], [knows, 0]]), np.array(biases[strength], float)

    strengths = np.arange(1.0, 8.0)
    # 7.0 has no bias and would raise: after 4.0 two worse ones in a row do end it
    _, chosen = fit_chosen(solve, strengths, 2, x, labels, target_of(2), None, 0)
    assert chosen == 4


def test_numbers_that_do_not_vary_have_no_r2():
    target = Target("scalar")
    for truth in (np.zeros(5), np.full(5, 0.1), np.full(5, 1e6, np.float32), np.ones(1)):
        assert np.isnan(score(truth, truth, target)) and np.isnan(chance(truth, target))
    assert score(np.array([1.0, 2.0]), np.array([1.0, 2.0]), target) == 1


# What version 0.1 gave for the same arrays and seeds: penalty or C, sum of weights, sum of biases;
# scores of the quick probe in the order of their names; first training rows and R2. The penalty of
# several labels alone is newer: it is chosen by the metric that tables show. So is the R2 of
# neighbours (1st, 3rd and 5th of the quick probe of numbers), which is held against random ones.
V01 = {
    "ridge/class/single": [100.0, 0.0, -1.0],
    "logistic/class/single": [0.01, -0.28223, 0.236428],
    "quick/class/single": [0.5875, 0.6125, 0.575, 0.625, 0.35, 0.375],
    "ridge/class/groups": [100.0, 0.0, -1.0],
    "logistic/class/groups": [0.01, -0.28223, 0.236428],
    "quick/class/groups": [0.625, 0.6375, 0.625, 0.675, 0.4625, 0.35],
    "ridge/multilabel/single": [0.1, 2.04938, -0.423467],
    "quick/multilabel/single": [0.812261, 0.929623, 0.888634, 0.937119, 0.440188, 0.416256],
    "ridge/multilabel/groups": [10.0, 1.945395, -0.420693],
    "quick/multilabel/groups": [0.821745, 0.887347, 0.882697, 0.907304, 0.446929, 0.370295],
    "ridge/scalar/single": [0.01, 4.104341, 9.91182],
    "quick/scalar/single": [0.436889, 0.698439, 0.523492, 0.656762, 0.015229, -0.015962],
    "ridge/scalar/groups": [10.0, 3.878159, 9.916161],
    "quick/scalar/groups": [0.434201, 0.760058, 0.541303, 0.747022, 0.049797, 0.002327],
    "shared/single": [119, 77, 141, 20, 0.829865],
    "shared/groups": [1, 2, 4, 5, 0.811296],
}


def test_numbers_are_those_of_version_0_1():
    rng = np.random.default_rng(7)
    x = rng.normal(size=(160, 12)).astype(np.float32)
    z = x[:, 0] + 0.5 * x[:, 1] + 0.7 * rng.normal(size=160)
    labels = {
        Target("class", ("a", "b", "c")): np.digitize(z, [-0.5, 0.5]),
        Target("multilabel", ("a", "b")): np.stack([z > 0, x[:, 2] + z > 0.8], 1).astype("f4"),
        Target("scalar"): (10 + 3 * z).astype(np.float32),
    }
    whole = np.arange(160) % 16
    names = [str(group) for group in whole]
    found = {}
    for target, y in labels.items():
        for how, groups in (("single", None), ("groups", whole)):
            place = f"{target.kind}/{how}"
            layer, strength = fit_ridge(x, y, target, groups, seed=3)
            weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
            found[f"ridge/{place}"] = [strength, float(weight.sum()), float(bias.sum())]
            if target.kind == "class":
                layer, strength = fit_logistic(x, y, target, groups, seed=3)
                weight, bias = layer.weight.detach()[0].double(), layer.bias.detach()[0]
                found[f"logistic/{place}"] = [strength, float(weight.sum()), float(bias)]
            own = None if groups is None else names
            scores = quick_probe({"a": x[:, :6], "b": x[:, 6:]}, y, target, own, seed=5)
            kept = [key for key in sorted(scores) if not key.endswith("/chance")]
            found[f"quick/{place}"] = [scores[key] for key in kept]
    for how, groups in (("single", None), ("groups", names)):
        train, test = split(160, groups, 2)
        s = standardised(x, train)
        mixed = (s[:, :4] @ rng.normal(size=(4, 4))).astype(np.float32) + s[:, 4:8]
        sides = [coordinates(side, train, test) for side in (s[:, :4], mixed)]
        own = None if groups is None else [groups[row] for row in train]
        found[f"shared/{how}"] = [*train[:4].tolist(), predicted(*sides, own)[0]]
    assert found.keys() == V01.keys()
    for key, values in found.items():
        assert values == pytest.approx(V01[key], abs=1e-4), key


def test_of_several_labels_one_may_be_all_that_varies():
    x = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    labels = np.stack([x[:, 0] > 0, np.ones(200)], axis=1).astype(np.float32)
    found = quick_probe({"a": x}, labels, Target("multilabel", ("some", "always")))
    assert found["a/linear"] > 0.95 and found["a/knn"] > 0.8


def test_a_constant_guess_scores_what_chance_says():
    rng = np.random.default_rng(0)
    kinds = rng.choice(3, 200, p=[0.5, 0.3, 0.2])
    target = Target("class", ("a", "b", "c"))
    guess = np.tile(np.bincount(kinds) / 200, (200, 1))
    assert chance(kinds, target) == score(guess, kinds, target)
    cover = (rng.random((200, 3)) < [0.2, 0.6, 0]).astype(np.float32)  # nothing shows the third
    target = Target("multilabel", ("a", "b", "c"))
    assert chance(cover, target) == pytest.approx(score(0 * cover, cover, target))
    assert chance(kinds.astype(float), Target("scalar")) == 0
    assert score(np.full(200, kinds.mean()), kinds, Target("scalar")) == pytest.approx(0)
    small = (1e-30 * rng.normal(size=50)).astype(np.float32)  # whose squares float32 does not have
    assert score(np.full(50, small.mean()), small, Target("scalar")) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("share", "is_left"), [(0.01, True), (0.5, True), (0.97, False)])
@pytest.mark.parametrize("grouped", [False, True])
def test_a_share_that_leaves_nothing_to_fit_gives_no_parts(share, is_left, grouped):
    labels, groups = np.arange(32) % 3, np.arange(32) // 4
    target = Target("class", ("a", "b", "c"))
    found = validation_parts(labels, target, groups if grouped else None, seed=0, share=share)
    assert bool(found) == is_left
    for fit, held in found:
        assert len(fit) and len(held) and len({*fit, *held}) == 32


def test_neighbours_that_know_a_label_tell_it():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 2)).astype(np.float32)
    assert score_of_neighbours(x, (x[:, 0] > 0).astype(float), 2, k=10) > 0.9
    assert score_of_neighbours(x, x[:, 0].astype(float), 0, k=10) > 0.9
    assert np.isnan(score_of_neighbours(x, np.full(300, 0.1), 0, k=10))
    nothing = [
        score_of_neighbours(x, rng.permutation(x[:, 0]).astype(float), 0, k=10)
        for _ in "1234567890"
    ]
    assert abs(np.mean(nothing)) < 0.03  # the R2 of such a guess is -0.1
    few = rng.normal(size=(24, 2)).astype(np.float32)
    told = quick_probe({"a": few}, 3 * few[:, 0], Target("scalar"))
    assert told["a/knn"] > 0.2  # not all of them are neighbours
    assert np.isnan(score_of_neighbours(x[:10], np.zeros(10), 2, k=10))
