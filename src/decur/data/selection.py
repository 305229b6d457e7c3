"""Some of a data set: some of its sensors, some of its samples."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from decur.data.base import PairedDataset
from decur.data.grid import Grid
from decur.data.sample import Sample
from decur.errors import ConfigError


def evenly_spaced(total: int, most: int) -> np.ndarray:
    """Return evenly spaced indices below `total`, first and last among them: (n,) int64.

    Args:
        total: how many there are to choose from.
        most: at most how many are wanted.
    """
    return np.linspace(0, total - 1, min(most, total)).round().astype(int)


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
        modalities: names of those to keep; None or empty: all, the data set itself.

    Raises:
        ConfigError: if the data has no such sensor.
    """
    for name in modalities or ():
        if name not in data.modalities:
            raise ConfigError(
                f"modalities: the data has no {name!r}; choose from {', '.join(data.modalities)}"
            )
    if not modalities or set(modalities) == set(data.modalities):
        return data
    return _Selection(data, modalities)


class _Selection(PairedDataset):
    def __init__(self, data: PairedDataset, modalities: Sequence[str]) -> None:
        self.data = data.only(modalities)
        self.modalities = {n: m for n, m in data.modalities.items() if n in modalities}
        there = np.logical_or.reduce([data.present[name] for name in self.modalities])
        self.rows = np.flatnonzero(there)
        self.ids = [data.ids[row] for row in self.rows]
        self.present = {name: data.present[name][self.rows] for name in self.modalities}
        self.targets = data.targets
        if data.groups is not None:
            self.groups = [data.groups[row] for row in self.rows]

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """See `PairedDataset.only`."""
        made = super().only(names, targets)
        made.data = self.data.only(names, targets)
        return made

    def read(self, index: int) -> Sample:
        """Read one sample's pictures that are wanted; those that come besides are dropped."""
        sample = self.data.read(int(self.rows[index]))
        images = {n: x for n, x in sample["images"].items() if n in self.modalities}
        return {**sample, "images": images}

    def files(self, index: int) -> Sequence[str | Path]:
        """Return those of the whole data set, without what is not wanted."""
        return self.data.files(int(self.rows[index]))

    def place(self, index: int) -> Grid | None:
        """Return that of the whole data set."""
        return self.data.place(int(self.rows[index]))

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return those of the whole data set, without what is not wanted."""
        return self.data.read_bytes(int(self.rows[index]))

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and the sensors."""
        return self.data, list(self.modalities)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the order of the whole data set, without the samples that are left out."""
        position = np.full(len(self.data), -1)
        position[self.rows] = np.arange(len(self.rows))
        order = position[self.data.order(rng)]
        kept: np.ndarray = order[order >= 0]
        return kept
