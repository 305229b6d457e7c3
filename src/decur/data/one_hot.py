"""One-hot columns of a table, `is_forest`, `is_water`, ..., as one label of several classes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from decur.data.base import PairedDataset
from decur.data.sample import Sample, Target
from decur.errors import ConfigError

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


class _Joined(PairedDataset):  # private, so that --help does not offer it
    def __init__(self, data: PairedDataset, target: str, columns: Sequence[str]) -> None:
        self.data, self.target, self.columns = data, target, tuple(columns)
        self.modalities, self.ids, self.present = data.modalities, data.ids, data.present
        self.groups, self.wanted = data.groups, data.wanted
        classes = tuple(name[target.index("*") :] for name in columns)
        others = {name: spec for name, spec in data.targets.items() if name not in columns}
        self.targets = {**others, target: Target("multilabel", classes)}
        if isinstance(root := getattr(data, "root", None), str | Path):
            self.root = root

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
        sample = self.data.read(index)
        target = dict(sample.get("target", {}))
        if self.target in self.targets:
            values = [self._value(name, target.pop(name, None)) for name in self.columns]
            target[self.target] = torch.tensor(values)
        return {**sample, "target": target}

    def _value(self, name: str, label: Tensor | None) -> float:
        if label is None or int(label) < 0:
            return float("nan")
        return _TRUTH[self.data.targets[name].classes[int(label)].lower()]

    def files(self, index: int) -> Sequence[str | Path]:
        """Return those of the data set."""
        return self.data.files(index)

    def read_bytes(self, index: int) -> np.ndarray | None:
        """Return those of the data set."""
        return self.data.read_bytes(index)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return that of the data set."""
        return self.data.order(rng)

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and the pattern."""
        return self.data, self.target
