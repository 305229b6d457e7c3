"""Labels of data to test or to validate on, with the classes of the data that is trained on."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from decur.data.base import Derived, PairedDataset
from decur.data.sample import Sample, Target
from decur.data.selection import join_columns
from decur.errors import ConfigError, DataError, listed
from decur.transfer.tasks import Task

log = logging.getLogger(__name__)

# What the header of labels.csv says of a column of each kind.
_HEADERS = {"class": "class", "multilabel": "multilabel", "scalar": "number"}


def match_label(data: PairedDataset, task: Task, key: str) -> PairedDataset:
    """Return data whose only label is that of a task, its classes those of the task by name.

    Data elsewhere may show fewer classes than the training data, which then have other numbers. A
    class that it does not show counts as absent from each of its samples.

    Args:
        data: to test or to validate on.
        task: the label of the training data.
        key: of the configuration that gives the data, for messages.

    Raises:
        ConfigError: if a pattern of columns matches none of its labels.
        DataError: if it lacks the label, has it in another kind, or has a class that the training
            data lacks.
    """
    name, wanted = task.name, task.target
    try:
        data = join_columns(data, name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error
    found = data.targets.get(name)
    if found is None:
        there = ", ".join(data.targets) or "none"
        raise DataError(
            f"{key}: has no label {name!r}, which is trained on; there is {there}; label both alike"
        )
    data = data.only(targets=[name])
    if found == wanted:
        return data
    if found.kind != wanted.kind:
        raise DataError(_other_kind(name, found, wanted, key))
    if found.classes == wanted.classes:  # but who sees it, say
        return _Renumbered(data, name, wanted)
    _refuse_other_classes(name, found, wanted, key)
    numbers = [wanted.classes.index(each) for each in found.classes]
    moved = [f"{found.classes[i]!r} {i} to {n}" for i, n in enumerate(numbers) if i != n]
    if moved:
        log.info(
            "%s: classes of %r are matched by name with those of the training data, which number "
            "them otherwise: %s",
            key,
            name,
            listed(moved),
        )
    return _Renumbered(data, name, wanted)


def _other_kind(name: str, found: Target, wanted: Target, key: str) -> str:
    """Return the message for a label of another kind than that of the training data."""
    remedy = "label both alike"
    if {found.kind, wanted.kind} <= _HEADERS.keys():
        remedy = f"write {name}:{_HEADERS[wanted.kind]} in the header of its labels.csv"
    return (
        f"{key}: {name!r} is taken for {found.describe()}, and in the training data for "
        f"{wanted.describe()}; {remedy}"
    )


def _refuse_other_classes(name: str, found: Target, wanted: Target, key: str) -> None:
    """Refuse classes that the training data lacks, and columns that the other data lacks."""
    more = [repr(each) for each in found.classes if each not in wanted.classes]
    if more:
        remedy = "label samples to train on with them, spell classes alike, or take them out"
        if wanted.kind == "mask":
            remedy = "name the classes of both alike, in a classes.txt beside the masks"
        raise DataError(
            f"{key}: the training data has no class {listed(more)} of {name!r}, only "
            f"{listed([repr(each) for each in wanted.classes])}; {remedy}"
        )
    lacking = [each for each in wanted.classes if each not in found.classes]
    if lacking and "*" in name:  # a column that is not there does not say that a class is absent
        columns = [repr(name[: name.index("*")] + each) for each in lacking]
        raise DataError(f"{key}: has no column {listed(columns)}, which {name!r} joins; add it")
    if found.classes != wanted.classes and wanted.kind not in ("class", "multilabel", "mask"):
        raise DataError(
            f"{key}: the classes of {name!r}, a {wanted.kind}, are not those of the training data; "
            "give both the same"
        )


class _Renumbered(Derived):  # private, so that --help does not offer it
    def __init__(self, data: PairedDataset, name: str, target: Target) -> None:
        super().__init__(data)
        self.name, self.before = name, data.targets[name]
        self.targets = {name: target}
        self.numbers = torch.tensor([target.classes.index(each) for each in self.before.classes])

    def read(self, index: int) -> Sample:
        """Read one sample, its label by the numbers of the other data."""
        sample = super().read(index)
        labels = sample.get("target", {})
        if self.name not in self.targets or labels.get(self.name) is None:
            return sample
        return {**sample, "target": {**labels, self.name: self._renumbered(labels[self.name])}}

    def _renumbered(self, label: Tensor) -> Tensor:
        target = self.targets[self.name]
        if self.before.classes == target.classes:
            return label
        if target.kind == "multilabel":
            flags = torch.zeros(len(target.classes))
            flags[self.numbers] = label  # NaN, which is unknown, stays
            return flags
        if target.kind == "class":
            return self.numbers[label] if label >= 0 else label
        known = label != self.before.void  # (H, W) of a mask
        return torch.where(known, self.numbers[label.where(known, 0)], target.void)

    def digest_parts(self) -> object:
        """Return the data set, of which only what is wanted is read, and its label."""
        return self.data, self.targets
