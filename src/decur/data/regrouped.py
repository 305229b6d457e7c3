"""Pairs that are drawn anew in each epoch, within groups of samples that show the same."""

from __future__ import annotations

import numpy as np
from torch.utils.data import Dataset

from decur.data.base import PairedDataset, SkipBad
from decur.data.sample import Sample
from decur.errors import ConfigError


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

    def source(self, index: int, name: str, *, epoch: int) -> int:
        """Return the sample whose picture of a sensor another one shows in an epoch."""
        assert self.dataset.groups is not None
        group = self.dataset.groups[index]
        rows = [row for row in self._members[group] if self.dataset.present[name][row]]
        stream = list(f"{self.seed}/{epoch}/{name}/{group}".encode())
        order = np.random.default_rng(stream).permutation(len(rows))
        return rows[int(order[rows.index(index)])]
