"""Data sets made of others: some sensors, pairs drawn anew in each epoch, columns joined."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from copy import copy
from fnmatch import fnmatchcase
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from decur.data.base import Derived, PairedDataset, SkipBad
from decur.data.sample import Sample, Target
from decur.errors import ConfigError

T = TypeVar("T")


def evenly_spaced(total: int, most: int) -> np.ndarray:
    """Return evenly spaced indices below `total`, first and last among them: (n,) int64.

    Args:
        total: how many there are to choose from.
        most: at most how many are wanted.
    """
    return np.linspace(0, total - 1, min(most, total)).round().astype(int)


def spaced(items: Sequence[T], most: int) -> list[T]:
    """Return evenly spaced items, first and last among them, at most so many."""
    return [items[row] for row in evenly_spaced(len(items), most).tolist()]


def interleaved(total: int, most: int, sets: int, least: int = 2) -> list[np.ndarray]:
    """Return sets of evenly spaced indices that have none in common: (n,) int64 each.

    Args:
        total: how many there are to choose from.
        most: at most how many are wanted in a set.
        sets: how many sets; fewer where there are not `least` indices for each.
        least: how many a set needs.
    """
    sets = max(1, min(sets, total // least))
    spaced = evenly_spaced(total, most * sets)
    spaced = spaced[: len(spaced) // sets * sets]
    return [spaced[first::sets] for first in range(sets)]


def select(data: PairedDataset, modalities: Sequence[str] | None) -> PairedDataset:
    """Return a data set with some of its sensors, and the samples that have one of them.

    Args:
        data: any data set.
        modalities: names of those to keep, or a single one; None or empty: all, the data set
            itself.

    Raises:
        ConfigError: if the data has no such sensor.
    """
    modalities = [modalities] if isinstance(modalities, str) else modalities
    for name in modalities or ():
        if name not in data.modalities:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(data.modalities)}"
            )
    if not modalities or set(modalities) == set(data.modalities):
        return data
    return _Selection(data, modalities)


class _Selection(Derived):
    def __init__(self, data: PairedDataset, modalities: Sequence[str]) -> None:
        there = np.logical_or.reduce([data.present[name] for name in modalities])
        super().__init__(data.only(modalities), np.flatnonzero(there))
        self.modalities = {n: m for n, m in data.modalities.items() if n in modalities}
        self.present = {name: self.present[name] for name in self.modalities}

    def read(self, index: int) -> Sample:
        """Read one sample's pictures that are wanted; those that come besides are dropped."""
        sample = super().read(index)
        images = {n: x for n, x in sample["images"].items() if n in self.modalities}
        return {**sample, "images": images}

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and the sensors."""
        return self.data, list(self.modalities)


# -- pairs that are drawn anew in each epoch, within groups of samples that show the same ----------


class Regrouped(Dataset[Sample]):
    """A data set whose samples exchange pictures within their group, otherwise in each epoch.

    The paper draws one season for each image and sensor (section 4). The samples of a place in
    SSL4EO-S12 are its seasons. In each epoch the pictures of a sensor are dealt out to the samples
    of the place in an order that is a function of (seed, epoch, sensor, group): every picture is
    seen once in an epoch, and through a run each season of one sensor meets each of the other.

    A sample's id stays, and so do the sensors that it has. It is bad where one of its pictures is.

    Args:
        dataset: any data set with groups, packed or not.
        seed: of the run.

    Raises:
        ConfigError: if the data has no groups, or they are of many places.
    """

    def __init__(self, dataset: PairedDataset, seed: int = 0) -> None:
        if dataset.groups is None:
            raise ConfigError(
                f"pairing: {type(dataset).__name__} has no groups within which to pair anew; "
                "set pairing to fixed"
            )
        self.dataset, self.seed = dataset, seed
        self._members: dict[str, list[int]] = {}
        for row, group in enumerate(dataset.groups):
            self._members.setdefault(group, []).append(row)
        self._refuse_other_places()

    def _refuse_other_places(self) -> None:
        """Look at a group whether its samples show one place: spatial blocks hold many."""
        rows = next((rows for rows in self._members.values() if len(rows) > 1), [0])
        rows = [rows[0], rows[-1]]
        places = [self.dataset.place(row) for row in rows]
        if None not in places and len(set(places)) > 1:
            first, second = (self.dataset.ids[row] for row in rows)
            raise ConfigError(
                f"pairing: {first!r} and {second!r} are of one group and show different places, so "
                "that their pictures are no pairs; set pairing to fixed, or pack without labels"
            )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, where: tuple[int, int]) -> Sample:
        """Return a sample of an epoch.

        Args:
            where: its index, and the epoch.
        """
        index, epoch = where
        names_of: dict[int, list[str]] = {}
        for name in self.dataset.sensors_of(index):
            names_of.setdefault(self.source(index, name, epoch=epoch), []).append(name)
        whole: Sample = {"id": self.dataset.ids[index], "images": {}}
        for row, names in names_of.items():
            part = SkipBad(self.dataset.only(names))[row]
            if "bad" in part:
                return {"id": whole["id"], "images": {}, "bad": part["bad"]}
            whole["images"].update({name: part["images"][name] for name in names})
        return whole

    def without(self, rows: Iterable[int]) -> Regrouped:
        """Return the same of all other samples: of these no picture is dealt out.

        Args:
            rows: of the samples that are left out; their index stays.
        """
        left_out, fewer = set(rows), copy(self)
        fewer._members = {
            group: [row for row in members if row not in left_out]
            for group, members in self._members.items()
        }
        return fewer

    def source(self, index: int, name: str, *, epoch: int) -> int:
        """Return the sample whose picture of a sensor another one shows in an epoch."""
        assert self.dataset.groups is not None
        group = self.dataset.groups[index]
        rows = [row for row in self._members[group] if self.dataset.present[name][row]]
        stream = list(f"{self.seed}/{epoch}/{name}/{group}".encode())
        order = np.random.default_rng(stream).permutation(len(rows))
        return rows[int(order[rows.index(index)])]


# -- one-hot columns of a table, is_forest, is_water, ..., as one label of several classes ---------

_TRUTH = {"0": 0.0, "1": 1.0, "false": 0.0, "true": 1.0, "no": 0.0, "yes": 1.0}


def join_columns(data: PairedDataset, target: str | None) -> PairedDataset:
    """Return a data set with the labels that a pattern matches as one multilabel of its name.

    Args:
        data: any data set.
        target: a pattern with `*`, as "is_*"; the data set itself is returned for any other.

    Raises:
        ConfigError: if it matches no label, or one of other values than 0 and 1.
    """
    if target is None or "*" not in target or target in data.targets:
        return data
    columns = [name for name in data.targets if fnmatchcase(name, target)]
    if not columns:
        there = ", ".join(data.targets) or "none"
        raise ConfigError(f"target: {target!r} matches no label; there is {there}")
    for name in columns:
        spec = data.targets[name]
        if spec.kind != "class" or not {c.lower() for c in spec.classes} <= set(_TRUTH):
            raise ConfigError(
                f"target: {target!r} joins columns of 0 and 1, and {name!r} is no such column; "
                "choose another pattern"
            )
    return _Joined(data, target, columns)


class _Joined(Derived):  # private, so that --help does not offer it
    def __init__(self, data: PairedDataset, target: str, columns: Sequence[str]) -> None:
        super().__init__(data)
        self.target, self.columns = target, tuple(columns)
        classes = tuple(name[target.index("*") :] for name in columns)
        others = {name: spec for name, spec in data.targets.items() if name not in columns}
        self.targets = {**others, target: Target("multilabel", classes)}

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """See `PairedDataset.only`."""
        made = super().only(names, targets)
        if targets is not None:
            own = self.columns if self.target in targets else ()
            targets = [*(name for name in targets if name != self.target), *own]
            made.data = self.data.only(names, targets)
        return made

    def read(self, index: int) -> Sample:
        """Read one sample; the columns become one vector of 0 and 1, NaN where unknown."""
        sample = super().read(index)
        target = dict(sample.get("target", {}))
        if self.target in self.targets:
            values = [self._value(name, target.pop(name, None)) for name in self.columns]
            target[self.target] = torch.tensor(values)
        return {**sample, "target": target}

    def _value(self, name: str, label: Tensor | None) -> float:
        if label is None or int(label) < 0:
            return float("nan")
        return _TRUTH[self.data.targets[name].classes[int(label)].lower()]

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and the pattern."""
        return self.data, self.target
