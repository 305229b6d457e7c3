"""The pictures and labels of some samples, in one pass over their data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.data import LoaderSettings, PairedDataset
from decur.data.sample import Target
from decur.errors import DataError
from decur.explain.base import Watch
from decur.features import SampleLoader
from decur.plotting import small_pictures

_SIDES = {2_000: 64, 6_000: 48, 20_000: 32}  # pixels of a picture, by the number of samples
_SHOWN = ("class", "multilabel", "scalar")  # kinds of labels


@dataclass(frozen=True)
class Seen:
    """What a page shows of the data.

    Args:
        pictures: `{sensor: (n, side, side, 3) uint8}`, black where a sample lacks the sensor.
        labels: `{label: (n,) or (n, classes)}`, as `Target` has them.
        targets: `{label: its kind and classes}`.
    """

    pictures: dict[str, NDArray[np.uint8]]
    labels: dict[str, NDArray[Any]]
    targets: dict[str, Target]


def look_at(data: PairedDataset, ids: Sequence[str], sensors: Sequence[str], watch: Watch) -> Seen:
    """Read the pictures and labels of some samples.

    Args:
        data: that has the samples; others of it are not read.
        ids: of the samples.
        sensors: whose pictures are wanted; those that the data lacks are left out.
        watch: shows how far it is.

    Raises:
        DataError: if the data lacks a sample.
    """
    places = {id_: place for place, id_ in enumerate(data.ids)}
    if lacking := [id_ for id_ in ids if id_ not in places]:
        raise DataError(
            f"--data: lacks {len(lacking)} of {len(ids)} samples, the first {lacking[0]!r}; give "
            "what was embedded"
        )
    sensors = [name for name in sensors if name in data.modalities]
    targets = {name: target for name, target in data.targets.items() if target.kind in _SHOWN}
    wanted = data.only(sensors, targets=list(targets))
    loader = SampleLoader(
        wanted, settings=LoaderSettings(batch_size=64), among=[places[id_] for id_ in ids]
    )
    side = next(side for most, side in _SIDES.items() if len(ids) <= most)
    pictures = {name: np.zeros((len(ids), side, side, 3), np.uint8) for name in sensors}
    labels: dict[str, list[NDArray[Any]]] = {name: [] for name in targets}
    row = 0
    for batch in watch(loader, len(loader)):
        for name in sensors:
            has = batch["present"][name]
            rows = row + np.flatnonzero(has.numpy())
            images = batch["images"][name][has]
            pictures[name][rows] = small_pictures(images, data.modalities[name], side)
        for name in targets:
            labels[name].append(batch["target"][name].numpy())
        row += len(batch["ids"])
    return Seen(pictures, {name: np.concatenate(each) for name, each in labels.items()}, targets)
