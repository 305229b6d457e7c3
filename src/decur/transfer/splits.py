"""Which samples train and which test."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import GroupKFold, KFold

from decur.data import PairedDataset, Sample
from decur.errors import ConfigError, DataError

log = logging.getLogger(__name__)
Rows = NDArray[np.int64]


def join(*parts: PairedDataset) -> PairedDataset:
    """Data sets one after another, as one; to keep their features in one place.

    Args:
        *parts: of the same sensors, sizes and labels.

    Raises:
        DataError: saying what differs.
    """
    return _Joined(*parts)


def refuse_shared(data: PairedDataset, test_data: PairedDataset) -> None:
    """See that nothing is both trained on and tested on, where ids tell: of one source.

    Raises:
        ConfigError: saying how many samples are in both parts.
    """
    shared = sorted(set(data.ids) & set(test_data.ids))
    if shared and _source(data) == _source(test_data):
        raise ConfigError(
            f"test_split: {len(shared)} samples are also trained on, such as {shared[0]!r}; choose "
            "another split"
        )


def _source(data: PairedDataset) -> tuple[object, ...]:
    """Where samples come from: a folder; or whatever else makes them, but for their split."""
    if isinstance(root := getattr(data, "root", None), str | Path):
        return type(data), str(Path(root).resolve())
    made_of = {key: value for key, value in data.made_of.items() if key != "split"}
    return type(data), repr(made_of)


class _Joined(PairedDataset):  # private, so that --help does not offer it
    def __init__(self, *parts: PairedDataset) -> None:
        self.joined = parts
        first = parts[0]
        for part in parts[1:]:
            if part.modalities != first.modalities:
                raise DataError(
                    f"the training and the test data differ in their modalities: "
                    f"{first.describe()} and {part.describe()}; give both the same modalities.yaml"
                )
            if part.targets != first.targets:
                raise DataError(
                    "the training and the test data differ in their labels or classes: "
                    f"{sorted(first.targets)} and {sorted(part.targets)}; label both alike"
                )
        self.modalities, self.targets = first.modalities, first.targets
        self.ids = [id_ for part in parts for id_ in part.ids]
        self.present = {
            name: np.concatenate([part.present[name] for part in parts]) for name in first.present
        }
        groups = [part.groups for part in parts]
        self.groups = [g for part in groups for g in part or ()] if None not in groups else None
        self._starts = np.cumsum([0, *(len(part) for part in parts)])

    def digest_parts(self) -> object:
        """Return the parts, of which only what is wanted is read."""
        return self.joined

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """See `PairedDataset.only`."""
        made = super().only(names, targets)
        made.joined = tuple(part.only(names, targets) for part in self.joined)
        return made

    def read(self, index: int) -> Sample:
        """Read one sample of whichever part it is in."""
        part = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self.joined[part].read(index - int(self._starts[part]))


def fold_split(
    rows: Rows, groups: Sequence[str] | None, folds: int, fold: int, seed: int
) -> tuple[Rows, Rows]:
    """One fold tests, the others train; groups stay whole.

    Args:
        rows: the samples to split.
        groups: of all samples, None where the data names none; then the order is shuffled.
        folds: into how many parts.
        fold: which of them tests, from 0.
        seed: of the shuffling.

    Returns:
        Rows to train on and rows to test on.

    Raises:
        ConfigError: if there are too few samples or groups, or `fold` is none of the folds.
    """
    if not 0 <= fold < folds:
        raise ConfigError(f"fold: must lie in 0 to {folds - 1} (folds is {folds}), is {fold}")
    chosen = np.array(groups)[rows] if groups is not None else None
    units = len(rows) if chosen is None else len(np.unique(chosen))
    if folds < 2 or units < folds:
        raise ConfigError(
            f"folds: needs 2 to {max(2, units)} for {units} "
            f"{'labelled samples' if chosen is None else 'groups with labels'}, is {folds}"
        )
    splitter = (
        GroupKFold(folds) if chosen is not None else KFold(folds, shuffle=True, random_state=seed)
    )
    train, test = list(splitter.split(rows, groups=chosen))[fold]
    return rows[train], rows[test]


def shared_groups(groups: Sequence[str] | None, train: Rows, test: Rows) -> int:
    """How many groups have samples on both sides."""
    if groups is None:
        return 0
    return len({groups[i] for i in train} & {groups[i] for i in test})


def draw_fraction(
    rows: Rows,
    fraction: float,
    seed: int,
    labels: NDArray[np.int64] | None = None,
    classes: Sequence[str] = (),
) -> Rows:
    """Draw labels without replacement; a smaller fraction of the same seed is part of a larger.

    Args:
        rows: samples to draw from.
        fraction: in (0, 1]; at least one sample is drawn.
        seed: of the draw.
        labels: class of every sample of the data set, to draw by class, at least one of each.
        classes: their names.

    Returns:
        The rows drawn, sorted.

    Raises:
        ConfigError: for a fraction out of range.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"label_fraction: a share in (0, 1], is {fraction:g}")
    order = np.random.default_rng(seed).permutation(rows)
    if labels is None:
        return np.sort(order[: max(1, round(fraction * len(order)))])
    drawn = []
    for label in np.unique(labels[rows]):
        of_class = order[labels[order] == label]
        count = round(fraction * len(of_class))
        if count == 0:
            log.info(
                "label_fraction %g of the %d samples of class %r is none; one is drawn",
                fraction,
                len(of_class),
                classes[label],
            )
        drawn.append(of_class[: max(1, count)])
    return np.sort(np.concatenate(drawn))
