"""Labelled samples to train on and to test on: folds, splits, shares of the labels."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from decur.data import PairedDataset, Sample
from decur.data.base import Derived
from decur.data.folds import fold_split
from decur.errors import ConfigError, DataError, listed
from decur.modality import Modality
from decur.scores import validation_parts
from decur.transfer.settings import TransferSettings
from decur.transfer.tasks import Task

log = logging.getLogger(__name__)

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Parts:
    """Labelled samples of a data set to train on and to test on.

    Args:
        data: the data set.
        task: its label.
        train: rows to train on.
        test: rows to test on.
        val: rows that choose the best epoch; none by default.
        modalities: the sensors that are used.
    """

    data: PairedDataset
    task: Task
    train: Rows
    test: Rows
    val: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    modalities: Sequence[str] = ()

    def groups(self, rows: Rows) -> list[str] | None:
        """Return the groups of samples; None where the data names none, or each has its own."""
        return _groups_of(self.data, rows)

    @property
    def absent(self) -> dict[str, dict[str, int]]:
        """Return how many samples to train and to test on lack a sensor, where any does."""
        lacks = {name: ~self.data.present[name] for name in self.modalities}
        found = {
            name: {"train": int(x[self.train].sum()), "test": int(x[self.test].sum())}
            for name, x in lacks.items()
        }
        return {name: counts for name, counts in found.items() if any(counts.values())}

    def ids(self, rows: Rows) -> list[str]:
        """Return the ids of samples."""
        return [self.data.ids[row] for row in rows]


def choose_parts(
    whole: PairedDataset,
    data: PairedDataset,
    task: Task,
    labels: NDArray[Any],
    modalities: Sequence[str],
    settings: TransferSettings,
    val_samples: int = 0,
) -> Parts:
    """Choose labelled samples with one of the sensors at least, to train on and to test on.

    Args:
        whole: all data, that to test on after that to train on, that to validate on last.
        data: the data to train on; `whole` itself where folds split it.
        task: whose labels are looked at.
        labels: of `whole`, (N, ...), as they are collected before the training.
        modalities: the sensors that are used.
        settings: folds, share of the labels, head, seed.
        val_samples: of the data to validate on, where that is data of its own.

    Raises:
        DataError: if a part is empty, a class is only in the test part, or a sample lacks a sensor
            that the head needs.
        ConfigError: if the folds are impossible.
    """
    known = task.known(labels)
    if not known.any():
        raise DataError(
            f"target: no sample has a known label {task.name!r}; correct labels.csv or mask/"
        )
    there = np.logical_or.reduce([whole.present[name] for name in modalities])
    rows = np.flatnonzero(known & there)
    first_of_val = len(whole) - val_samples
    val, rows = rows[rows >= first_of_val], rows[rows < first_of_val]
    if first_of_val == len(data):
        whole_folds = settings.folds_of == "all"
        seed = settings.fold_seed
        if seed is None:  # pretraining that leaves a fold out knows no seed of a transfer
            seed = 0 if whole_folds else settings.seed
        train, test = fold_split(
            np.arange(len(data)) if whole_folds else rows,
            data.groups,
            settings.folds,
            settings.fold,
            seed,
            what="samples" if whole_folds else "labelled samples",
        )
        train, test = np.intersect1d(train, rows), np.intersect1d(test, rows)
    else:
        train, test = rows[rows < len(data)], rows[rows >= len(data)]
    _refuse_parts(whole, task, labels, modalities, train, test)
    log.info(
        "%d of %d samples are labelled and seen: %d to train on, %d to test on",
        len(rows),
        len(whole),
        len(train),
        len(test),
    )
    if shared := shared_groups(whole.groups, train, test):
        log.warning(
            "%d groups are in the training and in the test part: the scores flatter; split by "
            "folds instead",
            shared,
        )
    if settings.head == "cmx":
        _refuse_absent(whole, rows, modalities)
    by_class = task.strata(labels)
    train = draw_fraction(train, settings.label_fraction, settings.seed, by_class, task.classes)
    if settings.val_fraction:
        train, val = _hold_out(whole, task, labels, train, settings)
    if val_samples and not len(val):
        raise DataError(
            f"val_split: none of its samples has a known {task.name!r}; choose another, or label it"
        )
    if len(val):
        log.info("%d samples choose the best epoch, %d are trained on", len(val), len(train))
    if settings.head == "cmx":
        _refuse_absent(whole, val, modalities)
    missing = task.missing_classes(labels[train])
    seen = [name for name in task.classes if name not in missing]
    if task.says == "class" and len(seen) == 1:
        raise DataError(
            f"target: {task.name!r} is {seen[0]!r} in all samples to train on ({len(train)}), "
            "which leaves nothing to tell apart; label other classes, or choose another split"
        )
    if by_class is None and missing:
        log.warning("no training sample shows %s", listed(list(map(repr, missing))))
    return Parts(whole, task, train, test, val, modalities)


def _groups_of(data: PairedDataset, rows: Rows) -> list[str] | None:
    if data.groups is None:
        return None
    names = [data.groups[row] for row in rows]
    return None if len(set(names)) == len(names) else names


def _hold_out(
    data: PairedDataset,
    task: Task,
    labels: NDArray[Any],
    train: Rows,
    settings: TransferSettings,
) -> tuple[Rows, Rows]:
    """Split the training part into rows to train on and rows to validate on; groups stay whole.

    A class all of whose samples were drawn to validate on gets a group, or a sample, back.
    """
    names = _groups_of(data, train)
    groups = None if names is None else np.array(names)
    found = validation_parts(
        labels[train], task.known_as, groups, settings.seed, share=settings.val_fraction
    )
    if not found or min(map(len, found[0])) < 1:
        raise ConfigError(
            f"val_fraction: {settings.val_fraction:g} of {len(train)} training samples leaves none "
            "to train on or to validate on; change it, or give val_split"
        )
    fit, held = map(np.sort, found[0])
    several = groups is not None and len(np.unique(groups)) > 1
    units = groups if groups is not None and several else np.arange(len(train))
    never, lost = task.missing_classes(labels[train]), []
    for name in task.missing_classes(labels[train[fit]]):
        if name in never or name not in task.missing_classes(labels[train[fit]]):
            continue  # nothing shows it, or it came back with another class
        showing = [i for i in held if name not in task.missing_classes(labels[train[[i]]])]
        kept, counts = np.unique(units[held], return_counts=True)
        there = np.isin(kept, units[showing])
        back = kept[there][counts[there].argmin()]
        if len(kept) > 1:
            fit = np.sort(np.concatenate([fit, held[units[held] == back]]))
            held = held[units[held] != back]
        else:
            lost.append(repr(name))
    if lost:
        log.warning(
            "val_fraction: all training samples that show %s are held out to validate on; give "
            "another val_fraction or seed, label more, or leave val_fraction out",
            listed(lost),
        )
    return train[fit], train[held]


def _refuse_parts(
    data: PairedDataset,
    task: Task,
    labels: NDArray[Any],
    modalities: Sequence[str],
    train: Rows,
    test: Rows,
) -> None:
    """Refuse a part without samples, and a class that is only tested."""
    for part, chosen in (("training", train), ("test", test)):
        if not len(chosen):
            raise DataError(
                f"the {part} part is empty: none of its samples has a known {task.name!r} and one "
                f"of {', '.join(modalities)}; choose another split or label it"
            )
    by_class = task.strata(labels)
    if by_class is None:
        return
    shown = np.unique(by_class[test])
    for name in task.missing_classes(labels[train]):
        if (label := task.classes.index(name)) in shown:
            raise DataError(
                f"target: class {name!r} of {task.name!r} has "
                f"{int((by_class[test] == label).sum())} test samples and none to train on; "
                "choose another --fold or split, or take the class out"
            )


def _refuse_absent(data: PairedDataset, rows: Rows, modalities: Sequence[str]) -> None:
    """Refuse samples without a sensor, for a head that needs all of them."""
    for name in modalities:
        lacking = rows[~np.asarray(data.present[name])[rows]]
        if len(lacking):
            raise DataError(
                f"head: cmx needs both sensors of every sample, and {len(lacking)} of {len(rows)} "
                f"lack {name!r} (such as {data.ids[lacking[0]]!r}); leave them out, or take fcn"
            )


def join(*parts: PairedDataset) -> PairedDataset:
    """Return data sets one after another, as one, so that their features are kept together.

    Args:
        *parts: of the same sensors, sizes and labels.

    Raises:
        DataError: saying what differs.
    """
    return _Joined(*parts)


def join_apart(
    data: PairedDataset,
    test_data: PairedDataset | None = None,
    val_data: PairedDataset | None = None,
) -> PairedDataset:
    """Join data to train, to test and to validate on, which must have no sample in common.

    Labels must be those of the data to train on, see `decur.transfer.matching`.

    Raises:
        ConfigError: if a sample is in two of them.
        DataError: if they differ in sensors, sizes or labels.
    """
    parts, uses = [data], ["trained"]
    for key, part in (("test_split", test_data), ("val_split", val_data)):
        if part is not None:
            for other, use in zip(parts, uses, strict=True):
                refuse_shared(other, part, key, use)
            parts.append(part)
            uses.append("tested")
    return join(*parts) if len(parts) > 1 else data


def refuse_shared(
    data: PairedDataset, test_data: PairedDataset, key: str = "test_split", use: str = "trained"
) -> None:
    """Refuse samples that are in two parts, where both are of one source.

    Args:
        data: one part.
        test_data: another one.
        key: of the configuration that gives the other one.
        use: of the one part, as "trained".

    Raises:
        ConfigError: saying how many samples are in both parts.
    """
    shared = sorted(set(data.ids) & set(test_data.ids))
    if shared and _source(data) == _source(test_data):
        raise ConfigError(
            f"{key}: {len(shared)} samples are also {use} on, such as {shared[0]!r}; choose "
            "another split"
        )


def _source(data: PairedDataset) -> tuple[object, ...]:
    """Return what tells the source of samples: a folder, or the settings but for the split."""
    while isinstance(data, Derived):
        data = data.data
    if isinstance(root := getattr(data, "root", None), str | Path):
        return (str(Path(root).resolve()),)  # whatever reads it
    made_of = {key: value for key, value in data.made_of.items() if key != "split"}
    return type(data), repr(made_of)


def _alike(other: Mapping[str, Modality], modalities: Mapping[str, Modality]) -> bool:
    """Return whether data has the sensors that other data was scaled for."""
    return set(other) == set(modalities) and all(
        modality.scaled_as(modalities[name]) == modalities[name] for name, modality in other.items()
    )


class _Joined(PairedDataset):  # private, so that --help does not offer it
    def __init__(self, *parts: PairedDataset) -> None:
        self.joined = parts
        first = parts[0]
        for part in parts[1:]:
            if not _alike(part.modalities, first.modalities):
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
        self.groups = None
        if any(part.groups is not None for part in parts):
            # a sample without a group is one of its own
            self.groups = [
                group
                for n, part in enumerate(parts)
                for group in part.groups or (f"{id_} of part {n}" for id_ in part.ids)
            ]
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


def shared_groups(groups: Sequence[str] | None, train: Rows, test: Rows) -> int:
    """Return how many groups have samples to train on and to test on."""
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
    """Draw a fraction of the samples without replacement.

    With the same seed, what a smaller fraction draws is part of what a larger one does.

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
