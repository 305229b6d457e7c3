"""Samples of several sensors, their labels, and batches of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from decur.modality import Modality

if TYPE_CHECKING:
    from decur.data.grid import Grid

VOID = 255  # in a mask of up to 255 classes: not known


class Sample(TypedDict):
    """One place: its pictures by modality, any of which may be missing, and its labels."""

    id: str
    images: dict[str, Tensor]  # (C, H, W), raw units, uint8 or float32
    target: NotRequired[dict[str, Tensor]]
    bad: NotRequired[tuple[str, str]]  # file and reason, if the sample could not be read
    place: NotRequired[Grid]  # where its pixels lie on a map, if the data set knows


class Batch(TypedDict):
    """Samples stacked. An absent image is zeros, and False in `present`."""

    images: dict[str, Tensor]  # (B, C, H, W)
    present: Mapping[str, Tensor]  # (B,) bool
    target: dict[str, Tensor]  # (B, ...)
    ids: list[str]
    bad: list[tuple[str, str]]  # (file, reason) of every sample that could not be read
    # of masks that differ in size, which stand at the top left of a tensor of the largest
    sizes: NotRequired[dict[str, Tensor]]  # (B, 2) height and width


@dataclass(frozen=True)
class Target:
    """The kind of a label, and the names of its classes.

    Args:
        kind: "class" (one of `classes`: int64 scalar, -1 unknown), "multilabel" (float32 vector
            of 0 and 1, NaN unknown), "scalar" (float32 number, NaN unknown), "mask" (int64 (H, W)
            of its own size, `void` unknown), or a kind that `decur.transfer.tasks` has registered.
        classes: names in order of their index; empty for scalars.
        modalities: the sensors that can see it, where the data set knows them; empty for all.
    """

    kind: str
    classes: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    @property
    def void(self) -> int:
        """What means "unknown" in a mask: 255, or -1 where that is a class."""
        return VOID if len(self.classes) <= VOID else -1

    def unknown(self, size: tuple[int, int] = (1, 1)) -> Tensor:
        """Return the value that means "not labelled"; `size` is a mask's height and width."""
        if self.kind == "class":
            return torch.tensor(-1)
        if self.kind == "mask":
            return torch.full(size, self.void, dtype=torch.int64)
        if self.kind == "multilabel":
            return torch.full((len(self.classes),), torch.nan)
        return torch.tensor(torch.nan)

    def describe(self) -> str:
        """Return what the label is taken for, as "7 classes", "number"."""
        several = f"{len(self.classes)} {'class' if len(self.classes) == 1 else 'classes'}"
        kinds = {
            "class": several,
            "multilabel": f"{several}, several at a time",
            "scalar": "number",
            "mask": f"{several} by pixel",
        }
        return kinds.get(self.kind, self.kind)

    def in_words(self, value: Tensor) -> str:
        """Return a label as a person reads it; a mask by its most frequent class.

        Args:
            value: of one sample, of the shape that `kind` says.

        Returns:
            "forest", "forest, water", "0.25", "forest 62 %"; "unknown" or "none of them" else.
        """
        if self.kind == "class":
            return self.classes[int(value)] if value >= 0 else "unknown"
        if self.kind == "mask":
            known = value[value != self.void].flatten().long()
            if not len(known):
                return "unknown"
            counts = known.bincount()
            share = 100 * counts.max().item() / len(known)
            return f"{self.classes[int(counts.argmax())]} {share:.0f} %"
        if bool(value.isnan().any()):
            return "unknown"
        if self.kind == "multilabel":
            there = [name for name, has in zip(self.classes, value, strict=True) if has > 0]
            return ", ".join(there) or "none of them"
        return f"{float(value):.3g}" if value.numel() == 1 else ""


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
        target, sizes = {}, {}
        for name, spec in self.targets.items():
            given = [sample.get("target", {}).get(name) for sample in samples]
            largest = self._mask_size(given) if spec.kind == "mask" else (1, 1)
            unknown = spec.unknown(largest)  # once: it may be a whole mask
            known = next((label for label in given if label is not None), unknown)
            if spec.kind != "mask" and known.shape != unknown.shape:  # a kind of label of one's own
                unknown = unknown.expand(known.shape)
            labels = [unknown if label is None else label for label in given]
            if spec.kind == "mask" and any(label.shape != largest for label in labels):
                sizes[name] = torch.tensor([label.shape for label in labels])  # (B, 2)
                labels = [padded(label, largest, spec.void) for label in labels]
            target[name] = torch.stack(labels)
        batch: Batch = {
            "images": images,
            "present": present,
            "target": target,
            "ids": [sample["id"] for sample in samples],
            "bad": [sample["bad"] for sample in samples if "bad" in sample],
        }
        return {**batch, "sizes": sizes} if sizes else batch

    @staticmethod
    def _stack(pictures: list[Tensor | None], modality: Modality) -> Tensor:
        there = [picture for picture in pictures if picture is not None]
        assert modality.size is not None, f"{modality.name}: the data set must set the size"
        same = there[0].dtype if len({p.dtype for p in there}) == 1 else torch.float32
        shape = (len(pictures), modality.channels, *modality.size)
        stacked = _to_be_filled(shape, same)  # (B, C, H, W)
        for row, picture in enumerate(pictures):
            stacked[row] = 0 if picture is None else picture
        return stacked

    def _mask_size(self, masks: Sequence[Tensor | None]) -> tuple[int, int]:
        """Return the height and width that hold each of some masks."""
        there = [mask.shape for mask in masks if mask is not None]
        if not there:
            return next(iter(self.modalities.values())).size or (1, 1)
        return max(shape[0] for shape in there), max(shape[1] for shape in there)


def _to_be_filled(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return a tensor without values.

    A reading process takes the memory that it shares with the one that trains: otherwise the whole
    batch would be copied there once it is stacked.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=dtype)
    storage: Any = torch.UntypedStorage  # whose methods torch does not annotate
    shared = storage._new_shared(math.prod(shape) * dtype.itemsize)
    nothing: Any = torch.empty(0, dtype=dtype)
    batch: Tensor = nothing.set_(shared, 0, shape)
    return batch


def padded(mask: Tensor, size: Sequence[int], value: int) -> Tensor:
    """Return a mask (..., H, W) at the top left of one of a size, which holds a value elsewhere."""
    height, width = mask.shape[-2:]
    return torch.nn.functional.pad(mask, (0, size[1] - width, 0, size[0] - height), value=value)
