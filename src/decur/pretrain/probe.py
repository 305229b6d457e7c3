"""Quick probes while training: are the features worth anything yet?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeClassifierCV, RidgeCV
from sklearn.metrics import accuracy_score, average_precision_score, r2_score
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from decur.data.sample import Target

Array = NDArray[np.float32]
METRICS = {"class": "accuracy", "multilabel": "mAP", "scalar": "R2"}
NEIGHBOURS = 20


def probe(
    features: dict[str, Array],
    labels: Array,
    target: Target,
    groups: list[str] | None = None,
    seed: int = 0,
) -> dict[str, float]:
    """Nearest-neighbour and linear probe of each sensor's features, and of all of them together.

    Half of the samples train, half test, split by group where there are groups. The linear probe
    is a ridge that picks its regularisation by leave-one-out within the training half.

    Args:
        features: `{modality: (N, D)}`; rows with NaN are samples that lack the modality.
        labels: (N,) or, for several labels at once, (N, classes); NaN or -1 unknown.
        target: what the labels are: "class", "multilabel" or "scalar".
        groups: samples of one group stay on one side.
        seed: of the split.

    Returns:
        `{"s1/linear": score, "s1/knn": ..., "s1+s2/linear": ...}`: accuracy, mean average
        precision (macro) or R2. Empty where the labels do not suffice.
    """
    together = np.concatenate(list(features.values()), axis=1)
    sets = {**features, "+".join(features): together} if len(features) > 1 else dict(features)
    scores = {}
    for name, x in sets.items():
        known = ~np.isnan(x).any(axis=1) & _known(labels, target)
        chosen = [g for g, k in zip(groups, known, strict=True) if k] if groups else None
        result = _scores(x[known], labels[known], target, chosen, seed)
        scores.update({f"{name}/{kind}": score for kind, score in result.items()})
    return scores


def _known(labels: Array, target: Target) -> NDArray[np.bool_]:
    if target.kind == "class":
        return np.asarray(labels >= 0)
    return np.asarray(~np.isnan(labels.reshape(len(labels), -1)).any(axis=1))


def _scores(
    x: Array, y: Array, target: Target, groups: list[str] | None, seed: int
) -> dict[str, float]:
    if len(x) < 20 or (groups and len(set(groups)) < 2):
        return {}
    splitter = (GroupShuffleSplit if groups else ShuffleSplit)(
        n_splits=1, test_size=0.5, random_state=seed
    )
    train, test = next(splitter.split(x, y, groups))
    if target.kind == "multilabel":
        # a class that all or none of either half show has no precision to measure
        mixed = [y[part].mean(axis=0) > 0 for part in (train, test)]
        mixed += [y[part].mean(axis=0) < 1 for part in (train, test)]
        y = y[:, np.logical_and.reduce(mixed)]
        if not y.shape[1]:
            return {}
    elif len(np.unique(y[train])) < 2:
        return {}
    k = min(NEIGHBOURS, len(train))
    linear, knn = _models(target, k)
    return {
        kind: _score(
            make_pipeline(StandardScaler(), model).fit(x[train], y[train]), x[test], y[test], target
        )
        for kind, model in (("linear", linear), ("knn", knn))
    }


def _models(target: Target, k: int) -> tuple[object, object]:
    strengths = np.logspace(-1, 5, 7)
    if target.kind == "scalar":
        return RidgeCV(strengths), KNeighborsRegressor(k)
    return RidgeClassifierCV(strengths), KNeighborsClassifier(k)


def _score(model: Pipeline, x: Array, y: Array, target: Target) -> float:
    if target.kind == "scalar":
        return float(r2_score(y, model.predict(x)))
    if target.kind == "class":
        return float(accuracy_score(y, model.predict(x)))
    if hasattr(model, "decision_function"):
        likely = model.decision_function(x)  # (N, labels)
    else:  # one (N, 2) array a label
        likely = np.stack([p[:, -1] for p in model.predict_proba(x)], axis=1)
    return float(average_precision_score(y, likely, average="macro"))
