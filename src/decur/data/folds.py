"""Folds of a data set: which samples test, and a pretraining that never sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from decur.data.base import Derived, PairedDataset
from decur.errors import ConfigError

Rows = NDArray[np.int64]


def fold_split(
    rows: Rows,
    groups: Sequence[str] | None,
    folds: int,
    fold: int,
    seed: int,
    what: str = "samples",
) -> tuple[Rows, Rows]:
    """Split samples into folds, of which one tests and the others train; groups stay whole.

    Args:
        rows: the samples to split.
        groups: of all samples, None where the data names none; then the order is shuffled.
        folds: into how many parts.
        fold: which of them tests, from 0.
        seed: of the shuffling.
        what: the samples are, for messages.

    Returns:
        Rows to train on and rows to test on.

    Raises:
        ConfigError: if there are too few samples or groups, or `fold` is none of the folds.
    """
    from sklearn.model_selection import GroupKFold, KFold  # slow to import

    if not 0 <= fold < folds:
        raise ConfigError(f"fold: must lie in 0 to {folds - 1} (folds is {folds}), is {fold}")
    chosen = np.array(groups)[rows] if groups is not None else None
    units = len(rows) if chosen is None else len(np.unique(chosen))
    if folds < 2 or units < folds:
        raise ConfigError(
            f"folds: needs 2 to {max(2, units)} for {units} "
            f"{what if chosen is None else f'groups of {what}'}, is {folds}"
        )
    splitter = (
        GroupKFold(folds) if chosen is not None else KFold(folds, shuffle=True, random_state=seed)
    )
    train, test = list(splitter.split(rows, groups=chosen))[fold]
    return rows[train], rows[test]


def without_fold(data: PairedDataset, fold: int | None, folds: int, seed: int) -> PairedDataset:
    """Return a data set without one of its folds, so that nothing learned from it has seen that.

    `decur transfer --folds_of all` with the same three numbers tests on what is left out.

    Args:
        data: any data set, whole: before sensors are selected, which may drop samples.
        fold: the one that is left out, from 0; None: none, the data set itself.
        folds: into how many parts the data is split, whole groups where it names groups.
        seed: of the folds of data without groups.

    Raises:
        ConfigError: if there are too few samples or groups, or `fold` is none of the folds.
    """
    return data if fold is None else divide(data, fold, folds, seed)[0]


def divide(
    data: PairedDataset, fold: int, folds: int, seed: int
) -> tuple[PairedDataset, PairedDataset]:
    """Return a data set without one of its folds, and that fold; arguments as of `without_fold`."""
    rows, held = fold_split(np.arange(len(data)), data.groups, folds, fold, seed)
    return Derived(data, rows), Derived(data, held)
