"""What probes are held to: samples held out, standardised columns, scores, and chance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.data.sample import Target

Float = NDArray[np.float64]
FeatureRows = NDArray[np.float32]
Rows = NDArray[np.int64]

METRICS = {"class": "accuracy", "multilabel": "mAP", "scalar": "R2"}  # what `score` measures


# -- splits and standardisation --------------------------------------------------------------------

TEST_SHARE = 1 / 3
FEWEST_GROUPS = 6  # that are worth keeping whole in `split`
VALIDATION = 0.2  # share of the training part that chooses a regularisation
REPEATS, FEW = 5, 2000  # validation parts that are averaged, where there are few samples


def split(
    count: int,
    groups: Sequence[str] | None,
    seed: int,
    share: float = TEST_SHARE,
    fewest_groups: int = FEWEST_GROUPS,
) -> tuple[Rows, Rows]:
    """Split samples at random into a part that trains and one that tests.

    Args:
        count: number of samples.
        groups: group of each sample; groups stay whole. None, or fewer than `fewest_groups`, for
            a split of single samples.
        seed: of the split.
        share: of the samples, or of the groups, that test.
        fewest_groups: below which groups are not looked at.

    Returns:
        Rows to train on and rows to test on.
    """
    whole = groups is not None and len(set(groups)) >= fewest_groups
    return _shuffled(count, groups if whole else None, 1, share, seed)[0]


def validation_parts(
    labels: NDArray[Any],
    target: Target,
    groups: NDArray[Any] | None,
    seed: int,
    share: float = VALIDATION,
) -> list[tuple[Rows, Rows]]:
    """Split a training part into samples to fit and samples that choose a regularisation.

    A fifth of the samples choose: whole groups where there are groups, by class where a sample has
    one class. Of fewer than 2,000 samples there are five such splits.

    Args:
        labels: (N, ...) known labels.
        target: what they mean.
        groups: (N,) that must not be split, if any.
        seed: of the splits.
        share: of the samples, or of the groups, that choose; a fifth.

    Returns:
        Rows to fit and rows to choose by, for each split; none where there are too few samples.
    """
    count = len(labels)
    repeats = REPEATS if count < FEW else 1
    if groups is not None and (several := len(np.unique(groups))) > 1:
        lacks = math.ceil(share * several) >= several  # none would be left to fit
        return [] if lacks else _shuffled(count, groups, repeats, share, seed)
    if count < 5 or math.ceil(share * count) >= count:
        return []
    if target.kind == "class":
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() > 1 and math.floor(min(share, 1 - share) * count) >= len(counts):
            from sklearn.model_selection import StratifiedShuffleSplit

            by_class = StratifiedShuffleSplit(repeats, test_size=share, random_state=seed)
            return list(by_class.split(labels, labels))
    return _shuffled(count, None, repeats, share, seed)


def _shuffled(
    count: int, groups: Sequence[str] | NDArray[Any] | None, repeats: int, share: float, seed: int
) -> list[tuple[Rows, Rows]]:
    from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

    kind = ShuffleSplit if groups is None else GroupShuffleSplit
    splitter = kind(n_splits=repeats, test_size=share, random_state=seed)
    return list(splitter.split(np.empty((count, 0)), groups=groups))


def standardised(x: FeatureRows, train: Rows | None = None) -> FeatureRows:
    """Scale columns to mean 0 and variance 1; those that do not vary become 0.

    Args:
        x: (N, K).
        train: rows that mean and variance are taken from; None for all.
    """
    if not len(x):
        return x
    seen = x if train is None else x[train]
    mean, spread = seen.mean(0, dtype=np.float64), seen.std(0, dtype=np.float64)
    varies = spread > np.finfo(np.float32).eps * np.abs(mean)
    scale = np.divide(1, spread, out=np.zeros_like(spread), where=varies)
    scaled: FeatureRows = ((x - mean) * scale).astype(np.float32)
    return scaled


# -- scores ----------------------------------------------------------------------------------------


def known(labels: NDArray[Any], target: Target) -> NDArray[np.bool_]:
    """Tell which samples are labelled: class -1 and NaN are unknown.

    Args:
        labels: (N,) or (N, classes).
        target: what they mean.
    """
    if target.kind == "class":
        return np.asarray(labels >= 0)
    return np.asarray(~np.isnan(labels.reshape(len(labels), -1)).any(axis=1))


def score(output: NDArray[Any], labels: NDArray[Any], target: Target) -> float:
    """Measure a head's output: accuracy, mean average precision (macro) or R2.

    Args:
        output: (N, classes) logits, or (N,) or (N, 1) numbers.
        labels: (N,) classes or numbers, or (N, classes), all known.
        target: what the labels mean.

    Returns:
        NaN where there is nothing to measure: no class that a sample shows, or numbers that do not
        vary, of whose variance no share can be explained.
    """
    from sklearn.metrics import accuracy_score, average_precision_score, r2_score

    if target.kind == "class":
        return float(accuracy_score(labels, output.argmax(axis=1)))
    if target.kind == "multilabel":
        shown = labels.any(axis=0)
        if not shown.any():
            return float("nan")
        return float(average_precision_score(labels[:, shown], output[:, shown], average="macro"))
    if not varies(labels):
        return float("nan")
    exact = (each.reshape(-1).astype(np.float64) for each in (labels, output))
    return float(r2_score(*exact))  # float32 has no squares of numbers below 1e-19


def varies(numbers: NDArray[Any]) -> bool:
    """Return whether numbers differ by more than their own rounding.

    Args:
        numbers: (N,).
    """
    if len(numbers) < 2:
        return False
    numbers = np.asarray(numbers)
    digits = np.finfo(numbers.dtype if numbers.dtype.kind == "f" else np.float64).eps
    return bool(np.ptp(numbers) > 4 * digits * np.abs(numbers).max())


def chance(labels: NDArray[Any], target: Target) -> float:
    """Return the score of a guess that is the same for every sample.

    That is the share of the most frequent class, the mean share of samples that show a class
    (of the classes that any shows), or, of numbers, the R2 of their mean, 0.

    Args:
        labels: (N,) or (N, classes), all known.
        target: what they mean.

    Returns:
        NaN where `score` has nothing to measure.
    """
    if target.kind == "class":
        return float(np.bincount(labels.astype(int)).max() / len(labels))
    if target.kind == "multilabel":
        shown = labels.any(axis=0)
        return float(labels[:, shown].mean()) if shown.any() else float("nan")
    return 0.0 if varies(labels) else float("nan")
