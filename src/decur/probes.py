"""Probes: how much vectors tell of labels, on samples held out.

Everything here takes arrays with one row a sample, and a `Target` that says what labels mean.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from decur.data.sample import Target
from decur.scores import (
    METRICS,
    FeatureRows,
    Float,
    Rows,
    chance,
    known,
    score,
    split,
    validation_parts,
    varies,
)

log = logging.getLogger(__name__)

# Standardised features (N, D), labels and a regularisation to (outputs, D) and (outputs,).
Solve = Callable[[Float, NDArray[Any], Target, float], tuple[Float, Float]]


# -- a linear head, its regularisation chosen on validation parts ----------------------------------

RIDGE = np.logspace(-2, 6, 9)  # penalties on standardised features
LOGISTIC = np.logspace(-5, 3, 9)  # C, the inverse of a penalty, likewise
PATIENCE = 2  # values of C that are worse, after which weaker penalties are not tried
ITERATIONS = 200  # iterations of L-BFGS: more than a penalty that is worth choosing needs
NEVER = -1e9  # bias of a class that has no sample


def fit_ridge(
    x: FeatureRows,
    labels: NDArray[Any],
    target: Target,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Linear, float]:
    """Fit least squares on standardised features; `validation_parts` choose the penalty.

    Args:
        x: (N, D) features of the training part.
        labels: (N, ...) known labels of it.
        target: what they mean.
        groups: (N,) that must not be split, if any.
        seed: of the validation parts.

    Returns:
        The layer, for features as they are, and the penalty.
    """
    return fit_chosen(solve_ridge, RIDGE, len(RIDGE), x, labels, target, groups, seed)


def fit_logistic(
    x: FeatureRows,
    labels: NDArray[Any],
    target: Target,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Linear, float]:
    """Fit multinomial logistic regression on standardised features, one class a sample.

    The penalty is weakened from one that is too strong until two in a row have been worse than the
    best on the validation parts: those still weaker take minutes, and overfit. They are not counted
    before some penalty has clearly beaten the most frequent class, under which scores dip first.

    Args:
        x: (N, D) features of the training part.
        labels: (N,) known classes of it.
        target: of kind "class".
        groups: (N,) that must not be split, if any.
        seed: of the validation parts, which are those of `fit_ridge`.

    Returns:
        The layer, for features as they are, whose softmax gives the probabilities; and scikit-
        learn's C, the inverse of the penalty.
    """
    return fit_chosen(solve_logistic, LOGISTIC, PATIENCE, x, labels, target, groups, seed)


def fit_chosen(
    solve: Solve,
    strengths: Float,
    patience: int,
    x: FeatureRows,
    labels: NDArray[Any],
    target: Target,
    groups: NDArray[Any] | None,
    seed: int,
) -> tuple[nn.Linear, float]:
    """Choose a regularisation on validation parts, then fit everything with it.

    Args:
        solve: fits standardised features with one regularisation.
        strengths: the regularisations to try, in this order.
        patience: how many in a row may be worse than the best before the rest is left out, once the
            best is clearly above what a head gives that tells nothing.
        x: (N, D) features of the training part.
        labels: (N, ...) known labels of it.
        target: what they mean.
        groups: (N,) that must not be split, if any.
        seed: of the validation parts.

    Returns:
        The layer, for features as they are, and the regularisation.
    """
    features = x.astype(np.float64)
    parts = validation_parts(labels, target, groups, seed)
    means = np.full(len(strengths), np.nan)
    best, worse, needed = -np.inf, 0, _clearly_above_chance(parts, labels, target)
    for tried, strength in enumerate(strengths):
        scores = []
        for fit, held in parts:
            weight, bias = _on_standardised(solve, features[fit], labels[fit], target, strength)
            output = (features[held] @ weight.T + bias).astype(np.float32)  # as a layer gives it
            scores.append(_choosing_score(output, labels[held], target))
        defined = [value for value in scores if not np.isnan(value)]
        means[tried] = np.mean(defined) if defined else np.nan
        worse = worse + 1 if means[tried] < best and best > needed else 0
        best = np.fmax(best, means[tried])
        if worse == patience:
            break
    if np.isnan(means).all():
        chosen = float(strengths[len(strengths) // 2])
        reason = f"no validation part defines {METRICS[target.kind]}"
        if not parts:
            reason = f"{len(x)} samples are too few to choose the probe's regularisation"
        log.warning("%s; the probe's regularisation is %g", reason, chosen)
    else:
        chosen = float(strengths[np.nanargmax(means)])
    weight, bias = _on_standardised(solve, features, labels, target, chosen)
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer, chosen


def _choosing_score(output: NDArray[Any], labels: NDArray[Any], target: Target) -> float:
    """Return what a validation part chooses by: `score`, of several labels over all decisions.

    That is the first metric of such a task, the one that its tables show.
    """
    if target.kind != "multilabel" or not labels.any():
        return score(output, labels, target)
    from sklearn.metrics import average_precision_score

    return float(average_precision_score(labels, output, average="micro"))


def _clearly_above_chance(
    parts: Sequence[tuple[Rows, Rows]], labels: NDArray[Any], target: Target
) -> float:
    """Return the score a standard error above that of the most frequent class; else no bound."""
    if target.kind != "class" or not parts:
        return -np.inf
    guesses = [np.bincount(labels[fit]).argmax() for fit, _ in parts]
    right = [
        (labels[held] == guess).mean() for guess, (_, held) in zip(guesses, parts, strict=True)
    ]
    share, tested = float(np.mean(right)), sum(len(held) for _, held in parts)
    return share + float(np.sqrt(share * (1 - share) / tested))


def _on_standardised(
    solve: Solve, x: Float, labels: NDArray[Any], target: Target, strength: float
) -> tuple[Float, Float]:
    """Fit standardised features; return (outputs, D) and (outputs,) for features as they are."""
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x)
    weight, bias = solve(scaler.transform(x), labels, target, strength)
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def solve_ridge(
    x: Float, labels: NDArray[Any], target: Target, penalty: float
) -> tuple[Float, Float]:
    """Fit least squares with an L2 penalty: +1 for a class that is there, -1 for one that is not.

    Args:
        x: (N, D) standardised features.
        labels: (N, ...) known labels.
        target: what they mean.
        penalty: of the squared weights.

    Returns:
        Weights (outputs, D) and biases (outputs,).
    """
    from sklearn.linear_model import Ridge

    if target.kind == "class":
        aims = 2.0 * np.eye(len(target.classes))[labels] - 1  # (N, classes)
    elif target.kind == "multilabel":
        aims = 2.0 * labels - 1
    else:
        aims = labels[:, None].astype(np.float64)
    fitted = Ridge(penalty).fit(x, aims)
    return fitted.coef_.reshape(-1, x.shape[1]), fitted.intercept_


def solve_logistic(x: Float, labels: NDArray[Any], target: Target, c: float) -> tuple[Float, Float]:
    """Fit multinomial logistic regression; a class without a sample is never the answer.

    Args:
        x: (N, D) standardised features.
        labels: (N,) known classes.
        target: names the classes.
        c: the inverse of the penalty, as scikit-learn has it.

    Returns:
        Weights (classes, D) and biases (classes,).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    outputs = len(target.classes)
    weight, bias = np.zeros((outputs, x.shape[1])), np.full(outputs, NEVER)
    there = np.unique(labels)
    if len(there) == 1:  # nothing to tell apart
        bias[there] = 0
        return weight, bias
    with warnings.catch_warnings():  # stopped early is regularised, too; the validation part judges
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=c, max_iter=ITERATIONS).fit(x, labels)
    found, offset = fitted.coef_, fitted.intercept_
    if len(there) == 2:  # scikit-learn gives the second class's logit over the first one's
        found, offset = found * [[-0.5], [0.5]], offset * [-0.5, 0.5]
    weight[there], bias[there] = found, offset
    return weight, bias


# -- quick probes, between epochs ------------------------------------------------------------------

QUICK_RIDGE = np.logspace(-1, 5, 7)  # penalties, chosen by leaving one out
NEIGHBOURS = 20
QUARTER = 4  # at most a quarter of few samples are neighbours: all would give one answer
FEWEST = 20  # samples that a quick probe needs


def quick_probe(
    features: Mapping[str, FeatureRows],
    labels: NDArray[Any],
    target: Target,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Score a linear and a nearest-neighbour probe of each sensor, and of all of them together.

    Half of the samples train, half test, split by group where there are groups. The linear probe
    is a ridge that picks its penalty by leave-one-out within the training half.

    Args:
        features: `{modality: (N, D)}`; rows with NaN are samples that lack the modality.
        labels: (N,) or, for several labels at once, (N, classes); NaN or -1 unknown.
        target: what the labels are: "class", "multilabel" or "scalar".
        groups: of each sample; one group stays on one side.
        seed: of the split.

    Returns:
        `{"s1/linear": score, "s1/knn": ..., "s1/chance": ..., "s1+s2/linear": ...}`: accuracy, mean
        average precision (macro) or R2, that of neighbours held against random ones; and what one
        guess for all samples that test has. Empty where the labels do not suffice, or are of
        another kind.
    """
    if target.kind not in METRICS:
        return {}
    together = np.concatenate(list(features.values()), axis=1)
    sets = {**features, "+".join(features): together} if len(features) > 1 else dict(features)
    scores = {}
    for name, x in sets.items():
        rows = ~np.isnan(x).any(axis=1) & known(labels, target)
        chosen = [g for g, k in zip(groups, rows, strict=True) if k] if groups else None
        found = _quick_scores(x[rows], labels[rows], target, chosen, seed)
        scores.update({f"{name}/{kind}": value for kind, value in found.items()})
    return scores


def quick_answers(
    x: FeatureRows,
    labels: NDArray[Any],
    target: Target,
    groups: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[NDArray[Any], NDArray[Any]] | None:
    """Return what the linear probe of `quick_probe` answers for the half that tests, and the truth.

    Args:
        x: (N, D), without NaN.
        labels: (N, ...) known labels.
        target: what they are.
        groups: of each sample.
        seed: of the split.

    Returns:
        Outputs and labels as `decur.scores.score` takes them; None where labels do not suffice.
    """
    parts = _halves(x, labels, target, groups, seed)
    if target.kind not in METRICS or parts is None:
        return None
    y, train, test = parts
    ridge = _quick_models(target, len(train))["linear"]
    return _quick_output(ridge, x, y, target, train, test), y[test]


def _quick_scores(
    x: FeatureRows, y: NDArray[Any], target: Target, groups: Sequence[str] | None, seed: int
) -> dict[str, float]:
    parts = _halves(x, y, target, groups, seed)
    if parts is None:
        return {}
    y, train, test = parts
    scores = {}
    for kind, model in _quick_models(target, len(train)).items():
        output = _quick_output(model, x, y, target, train, test)
        scores[kind] = score(output, y[test], target)
        if kind == "knn" and target.kind == "scalar":
            scores[kind] = _beyond_random(scores[kind], y[train], y[test], model.n_neighbors)
    return {**scores, "chance": chance(y[test], target)}


def _beyond_random(r2: float, pool: NDArray[Any], truth: NDArray[Any], k: int) -> float:
    """Return the R2 of means over k neighbours held against means over k random samples.

    Neighbours that tell nothing miss by more than the mean of all does: R2 has -1 / k by chance and
    less of few samples, this has 0.

    Args:
        r2: of the neighbours.
        pool: (n,) labels that neighbours are drawn from.
        truth: (m,) labels that are told.
        k: how many neighbours.
    """
    pool, truth = pool.astype(np.float64), truth.astype(np.float64)
    # expected squared error of a mean of k that are drawn without replacement
    drawn = pool.var(ddof=1) * (1 / k - 1 / len(pool))
    random = ((truth - pool.mean()) ** 2).mean() + drawn
    return float(1 - (1 - r2) * truth.var() / random)


def _halves(
    x: FeatureRows, y: NDArray[Any], target: Target, groups: Sequence[str] | None, seed: int
) -> tuple[NDArray[Any], Rows, Rows] | None:
    """Return the labels to learn, rows to train on and rows to test on; None: they do not do."""
    if len(x) < FEWEST or (groups and len(set(groups)) < 2):
        return None
    train, test = split(len(x), groups or None, seed, share=0.5, fewest_groups=2)
    if target.kind == "multilabel":
        # a class that all or none of either half show has no precision to measure
        mixed = [y[part].mean(axis=0) > 0 for part in (train, test)]
        mixed += [y[part].mean(axis=0) < 1 for part in (train, test)]
        y = y[:, np.logical_and.reduce(mixed)]
        return (y, train, test) if y.shape[1] else None
    return (y, train, test) if len(np.unique(y[train])) > 1 else None


def _quick_models(target: Target, count: int) -> dict[str, Any]:
    """Return the models that learn from so many samples, not fitted."""
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

    k = min(NEIGHBOURS, max(1, count // QUARTER))
    scalar = target.kind == "scalar"
    return {
        "linear": RidgeCV(QUICK_RIDGE) if scalar else RidgeClassifierCV(QUICK_RIDGE),
        "knn": KNeighborsRegressor(k) if scalar else KNeighborsClassifier(k),
    }


def _quick_output(
    model: Any, x: FeatureRows, y: NDArray[Any], target: Target, train: Rows, test: Rows
) -> NDArray[Any]:
    """Fit a model on standardised features, and return its output for `score`."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fit_to = y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y  # scikit-learn wants it flat
    model = make_pipeline(StandardScaler(), model).fit(x[train], fit_to[train])
    if target.kind == "class":
        return np.asarray(model.predict(x[test])[:, None] == np.arange(y.max() + 1))
    if target.kind == "scalar":
        return np.asarray(model.predict(x[test]))
    if hasattr(model, "decision_function"):
        return np.asarray(model.decision_function(x[test]).reshape(y[test].shape))  # (N, classes)
    found = model.predict_proba(x[test])  # one (N, 2) array a class, and no list of one
    return np.stack([p[:, -1] for p in (found if y.shape[1] > 1 else [found])], axis=1)


def score_of_neighbours(x: FeatureRows, labels: Float, classes: int, k: int) -> float:
    """Score how well the k nearest samples tell the label of each, which is left out itself.

    The mean of k neighbours that tell nothing misses a number by more than the mean of all does: by
    (1 + 1 / k) times the variance. That error is what the R2 of numbers is measured against, so
    that its chance level is 0, not -1 / k.

    Args:
        x: (N, D).
        labels: (N,) known classes or numbers.
        classes: number of classes; 0 for numbers.
        k: how many neighbours vote, or are averaged.

    Returns:
        Accuracy, or the share of the squared error of k samples drawn at random that the nearest
        ones save; NaN where there are no k neighbours, or numbers do not vary.
    """
    from sklearn.metrics import accuracy_score
    from sklearn.neighbors import NearestNeighbors

    if len(labels) <= k:
        return float("nan")
    near = NearestNeighbors(n_neighbors=k).fit(x).kneighbors()[1]  # (N, k)
    if not classes:
        if not varies(labels):
            return float("nan")
        error = np.mean((labels - labels[near].mean(1)) ** 2)
        return float(1 - error / (labels.var(ddof=1) * (1 + 1 / k)))
    votes = np.stack(
        [(labels[near] == value).sum(1) for value in range(int(labels.max()) + 1)], axis=1
    )
    return float(accuracy_score(labels, votes.argmax(1)))
