"""Samples of several sensors, their labels, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NotRequired, TypedDict

import torch
from torch import Tensor

from decur.modality import Modality


class Sample(TypedDict):
    """One place: its pictures by modality, any of which may be missing, and its labels."""

    id: str
    images: dict[str, Tensor]  # (C, H, W), raw units, uint8 or float32
    target: NotRequired[dict[str, Tensor]]
    bad: NotRequired[tuple[str, str]]  # file and reason, if the sample could not be read


class Batch(TypedDict):
    """Samples stacked. An absent image is zeros, and False in `present`."""

    images: dict[str, Tensor]  # (B, C, H, W)
    present: dict[str, Tensor]  # (B,) bool
    target: dict[str, Tensor]  # (B, ...)
    ids: list[str]
    bad: list[tuple[str, str]]  # (file, reason) of every sample that could not be read


@dataclass(frozen=True)
class Target:
    """The kind of a label, and the names of its classes.

    Args:
        kind: "class" (one of `classes`: int64 scalar, -1 unknown), "multilabel" (float32 vector
            of 0 and 1, NaN unknown), "scalar" (float32 number, NaN unknown), "mask" (int64 (H, W),
            255 unknown), or a kind that `decur.transfer.tasks` has registered.
        classes: names in order of their index; empty for scalars.
        modalities: the sensors that can see it, where the data set knows them; empty for all.
    """

    kind: str
    classes: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    def unknown(self, size: tuple[int, int] = (1, 1)) -> Tensor:
        """Return the value that means "not labelled"; `size` is a mask's height and width."""
        if self.kind == "class":
            return torch.tensor(-1)
        if self.kind == "mask":
            return torch.full(size, 255, dtype=torch.int64)
        if self.kind == "multilabel":
            return torch.full((len(self.classes),), torch.nan)
        return torch.tensor(torch.nan)


class Collate:
    """A callable that stacks samples into a `Batch`; unlike a closure it can be pickled.

    Args:
        modalities: of the data set, with their sizes.
        targets: of the data set.
    """

    def __init__(self, modalities: dict[str, Modality], targets: dict[str, Target]) -> None:
        self.modalities = modalities
        self.targets = targets

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples; one without a modality gets zeros, and False in `present`."""
        images, present = {}, {}
        for name, modality in self.modalities.items():
            has = [name in sample["images"] for sample in samples]
            present[name] = torch.tensor(has)
            images[name] = self._stack([s["images"].get(name) for s in samples], modality)
        target = {}
        for name, spec in self.targets.items():
            unknown = spec.unknown(self._mask_size(samples, name))  # once: it may be a whole mask
            target[name] = torch.stack([s.get("target", {}).get(name, unknown) for s in samples])
        return {
            "images": images,
            "present": present,
            "target": target,
            "ids": [sample["id"] for sample in samples],
            "bad": [sample["bad"] for sample in samples if "bad" in sample],
        }

    @staticmethod
    def _stack(pictures: list[Tensor | None], modality: Modality) -> Tensor:
        there = [picture for picture in pictures if picture is not None]
        assert modality.size is not None, f"{modality.name}: the data set must set the size"
        same = there[0].dtype if len({p.dtype for p in there}) == 1 else torch.float32
        shape = (len(pictures), modality.channels, *modality.size)
        stacked = torch.zeros(shape, dtype=same)  # (B, C, H, W)
        for row, picture in enumerate(pictures):
            if picture is not None:
                stacked[row] = picture
        return stacked

    def _mask_size(self, samples: Sequence[Sample], name: str) -> tuple[int, int]:
        for sample in samples:
            mask = sample.get("target", {}).get(name)
            if mask is not None and mask.ndim == 2:
                return (mask.shape[0], mask.shape[1])
        return next(iter(self.modalities.values())).size or (1, 1)
