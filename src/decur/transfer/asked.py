"""What a transfer is asked for: the label, and whether it goes together at all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from decur.data import PairedDataset
from decur.encoders import Encoder
from decur.encoders.base import refuse_size
from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.transfer.averaging import Averaging
from decur.transfer.sources import Representation
from decur.transfer.splits import Rows
from decur.transfer.tasks import Task, make_task

Probe = Literal["ridge", "logistic", "sgd"]
Head = Literal["fcn", "cmx"]


def choose_task(data: PairedDataset, target: str | None) -> Task:
    """The task of a label.

    Args:
        data: labelled.
        target: the label; None where there is only one.

    Raises:
        DataError: if there is no label at all.
        ConfigError: if there is no such one, or several and none is named.
    """
    there = ", ".join(f"{name} ({spec.kind})" for name, spec in data.targets.items())
    if not there:
        raise DataError("target: the data has no labels; add labels.csv or mask/ to its folder")
    if target is None:
        if len(data.targets) > 1:
            raise ConfigError(f"target: the data has several labels, choose from {there}")
        target = next(iter(data.targets))
    if target not in data.targets:
        raise ConfigError(f"target: the data has no label {target!r}; choose from {there}")
    return make_task(target, data.targets[target])


def refuse(
    task: Task,
    freeze: bool,
    probe: Probe,
    representation: Representation,
    head: Head,
    averaging: Averaging,
) -> None:
    """What would make no sense together, as the arguments of `transfer` say.

    Raises:
        ConfigError: naming the argument.
    """
    kind = task.target.kind
    if freeze and probe == "sgd" and kind == "scalar":
        raise ConfigError("probe: sgd is the paper's head for classes; a scalar takes ridge")
    if freeze and probe == "logistic" and kind != "class":
        raise ConfigError(
            f"probe: logistic tells one class a sample from others, and {task.name!r} is a {kind}; "
            "take ridge"
        )
    if representation != "features" and (task.dense or not freeze):
        what = "a mask needs feature maps" if task.dense else "fine-tuning starts from encoders"
        raise ConfigError(
            f"representation: {representation} is for probes, and {what}; take features"
        )
    if head != "fcn" and not task.dense:
        raise ConfigError(f"head: {head} is for masks, and {task.name!r} is a {kind}; leave it out")
    if not averaging.trivial and not task.dense:
        raise ConfigError(
            f"test_scales, test_flip: are for masks, and {task.name!r} is a {kind}; leave them out"
        )


def refuse_sizes(
    encoders: Mapping[str, Encoder],
    modalities: Mapping[str, Modality],
    size: int | None,
    averaging: Averaging,
) -> None:
    """See that encoders take the pictures as they are given to them, before all are read.

    Args:
        encoders: by sensor.
        modalities: those of the data.
        size: height and width that pictures are resized to; None for their own.
        averaging: what a mask that is tested is the mean of.

    Raises:
        ConfigError: naming `size` or `test_scales`.
    """
    for name, encoder in encoders.items():
        own = (size, size) if size else modalities[name].size
        if own is None:
            continue  # a data set of somebody's own may not say
        refuse_size(encoder, modalities[name], own, "size")
        for scale in averaging.scales:
            if scale != 1:
                refuse_size(encoder, modalities[name], averaging.scaled(own, scale), "test_scales")


def refuse_absent(data: PairedDataset, rows: Rows, modalities: Sequence[str]) -> None:
    """Samples without a sensor, where both are needed.

    Args:
        data: the data set.
        rows: which samples are used.
        modalities: what each must have.

    Raises:
        DataError: saying how many lack which, and one of them.
    """
    for name in modalities:
        lacking = rows[~np.asarray(data.present[name])[rows]]
        if len(lacking):
            raise DataError(
                f"head: cmx needs both sensors of every sample, and {len(lacking)} of {len(rows)} "
                f"lack {name!r} (such as {data.ids[lacking[0]]!r}); leave them out, or take fcn"
            )
