"""Rows of all samples: what they are, and how they are collected in memory or in files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.data import Target
from decur.digest import CannotBeTold
from decur.errors import DataError
from decur.features.model import FeatureBatch
from decur.runs import reason_not_written

Key = tuple[str, str]  # "features", "embeddings" or "masks"; and of what
_CHUNK = 256  # rows read at a time


@dataclass(frozen=True)
class Features:
    """What the encoders give for all samples, a row for each, in memory or memory-mapped.

    Args:
        features: `{modality: (N, D)}`, or feature maps `{"modality/0": (N, C, H, W)}`; float32,
            NaN where the sensor is absent.
        embeddings: `{modality: (N, K)}`, likewise; empty without projectors.
        labels: `{target: (N, ...)}` as `Target` says; of masks (N, classes), the pixels of each
            class.
        masks: `{target: (N, H, W)}` where they were asked for; uint8, or int32 where a mask has
            more than 255 classes.
        bad: file and reason of what could not be read; its labels are unknown.
        computed: whether anything was computed; False: all was found in the cache.
        known_by: digest of what the rows were made from; None where that cannot be told.
    """

    features: dict[str, NDArray[np.float32]]
    embeddings: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[Any]]
    masks: dict[str, NDArray[Any]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    computed: bool = True
    known_by: str | None = None

    def present(self, *names: str) -> NDArray[np.bool_]:
        """Return which samples have all of these sensors: (N,)."""
        found = np.ones(len(self.features[names[0]]), bool)
        for name in names:
            found &= ~np.isnan(self.features[name][:, 0])
        return found

    def statistics(self, name: str) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each dimension of a sensor's embedding.

        Args:
            name: of the sensor; one that no sample has gives NaN.

        Returns:
            (K,) each, float32, over all samples.
        """
        rows = np.flatnonzero(self.present(name))
        embedding, n = self.embeddings[name], max(len(rows), 1)
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        total = np.zeros(embedding.shape[1])
        squares = np.zeros_like(total)
        for chunk in chunks:
            total += embedding[chunk].sum(0, dtype=np.float64)
        mean = total / n
        for chunk in chunks:
            squares += ((embedding[chunk] - mean) ** 2).sum(0)
        mean[:] = mean if len(rows) else np.nan
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / n)).float()

    def digest_parts(self) -> object:
        """Return what tells these rows from others, for `decur.digest`."""
        if self.known_by is None:
            raise CannotBeTold("features of data that cannot be told from other data")
        return self.known_by


def zeroed(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy that is zero where all is NaN: the features of a sensor that is absent.

    Args:
        x: (D,), (N, D) or (C, H, W) of one sample.
    """
    x = np.array(x)
    axes = tuple(range(1, x.ndim)) if x.ndim == 2 else None
    absent = np.isnan(x).all(axis=axes)
    x[absent] = 0
    return x


class MasksDifferError(DataError):
    """Masks that differ in size, so that they make no array."""


class NotFiniteError(DataError):
    """Rows that are not finite: of an encoder that is broken, or of a picture."""


def refuse_rows_not_finite(rows: NDArray[Any], ids: Sequence[str], what: str) -> None:
    """Refuse what an encoder gives for samples where it is not finite.

    Args:
        rows: (n, ...) of the samples that have the sensor.
        ids: of these samples.
        what: the rows, for the message: "features of 's2'".

    Raises:
        NotFiniteError: naming the first sample.
    """
    finite = np.isfinite(rows).all(axis=tuple(range(1, np.ndim(rows))))  # (n,)
    if not finite.all():
        first = ids[int(np.argmin(finite))]
        raise NotFiniteError(
            f"{what}: not finite for {int((~finite).sum())} of {len(rows)} samples, the first "
            f"{first!r}; look at its picture, at the weights and at the precision"
        )


class Columns:
    """Arrays of a known number of rows that are filled row by row, in memory or in files.

    Files are written from their beginning to their end, so that a full disk is an error of
    writing and not of reading.

    Args:
        rows: of each array.
        masks: the masks to keep.
        opening: opens the file of an array, given its key; None: memory.
    """

    def __init__(
        self, rows: int, masks: Mapping[str, Target], opening: Callable[[Key], IO[bytes]] | None
    ) -> None:
        self.rows, self.masks, self.opening = rows, masks, opening
        self.mask_shapes: dict[str, tuple[int, ...]] = {}
        # Rows that wait for the first known mask, whose size they take.
        self.waiting = dict.fromkeys(masks, 0)
        self.parts: dict[Key, list[NDArray[Any]]] = {}
        self.files: dict[Key, IO[bytes]] = {}

    def add(self, batch: FeatureBatch) -> None:
        """Take the rows of a batch, and its masks.

        Raises:
            MasksDifferError: if masks differ in size.
        """
        for kind, arrays in (("features", batch.features), ("embeddings", batch.embeddings)):
            for name, values in arrays.items():
                self._add((kind, name), values.numpy())
        for name, spec in self.masks.items():
            self._add_masks(name, batch.target[name].numpy(), spec)

    def finish(self) -> None:
        """Write the masks of samples without one, where no sample has a mask."""
        for name, spec in self.masks.items():
            if self.waiting[name]:
                self._write_masks(name, np.full((0, 1, 1), spec.void), spec)

    def _add_masks(self, name: str, masks: NDArray[Any], spec: Target) -> None:
        if (masks == spec.void).all() and name not in self.mask_shapes:
            # A mask without a known pixel has no size of its own: wait for one that has.
            self.waiting[name] += len(masks)
            return
        shape = self.mask_shapes.setdefault(name, masks.shape[1:])
        if masks.shape[1:] != shape:
            if (masks != spec.void).any():
                raise MasksDifferError(f"{name}: masks are of several sizes, {shape} is one")
            masks = np.full((len(masks), *shape), spec.void)
        self._write_masks(name, masks, spec)

    def _write_masks(self, name: str, masks: NDArray[Any], spec: Target) -> None:
        kind = np.uint8 if spec.void >= 0 else np.int32
        before = np.full((self.waiting[name], *masks.shape[1:]), spec.void)
        self.waiting[name] = 0
        for part in (before, masks):
            if len(part):
                self._add(("masks", name), part.astype(kind))

    def _add(self, key: Key, values: NDArray[Any]) -> None:
        values = np.ascontiguousarray(values)
        if self.opening is None:
            self.parts.setdefault(key, []).append(values)
            return
        if key not in self.files:
            self.files[key] = self.opening(key)
            self.parts[key] = [values[:0]]
            about = {"descr": values.dtype.str, "fortran_order": False}
            shape = (self.rows, *values.shape[1:])
            np.lib.format.write_array_header_1_0(self.files[key], {**about, "shape": shape})
        self.files[key].write(values.tobytes())

    def arrays(self) -> dict[str, dict[str, NDArray[Any]]]:
        """Return `{kind: {name: (N, ...)}}`, memory-mapped where there are files."""
        self.finish()
        found: dict[str, dict[str, NDArray[Any]]] = {}
        for (kind, name), parts in self.parts.items():
            if self.opening is None:
                array = np.concatenate(parts)
            else:
                file, like = self.files[kind, name], parts[0]
                file.flush()
                shape = (self.rows, *like.shape[1:])
                start = file.tell() - like.dtype.itemsize * int(np.prod(shape))
                array = np.memmap(file, like.dtype, "r+", start, shape)
            found.setdefault(kind, {})[name] = array
        return found


class LabelRows:
    """The labels of all samples, batch by batch."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self.targets = targets
        self.parts: dict[str, list[NDArray[Any]]] = {name: [] for name in targets}

    def add(self, batch: FeatureBatch) -> None:
        """Take the labels of a batch."""
        for name, spec in self.targets.items():
            values = batch.target[name]
            if spec.kind == "mask":
                flat = values.flatten(1)  # (B, H * W)
                known = (flat >= 0) & (flat < len(spec.classes))
                row = torch.arange(len(flat))[:, None] * len(spec.classes)  # (B, 1)
                counts = torch.bincount(
                    (row + flat)[known], minlength=row.numel() * len(spec.classes)
                )
                values = counts.reshape(len(flat), len(spec.classes))  # (B, classes)
            self.parts[name].append(values.numpy())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return `{target: (N, ...)}`."""
        return {n: np.concatenate(p) if p else np.empty(0) for n, p in self.parts.items()}


@contextmanager
def writing_rows(where: object) -> Iterator[None]:
    """Tell in one line why rows that the block writes cannot be written.

    Args:
        where: the folder.

    Raises:
        DataError: naming the folder and the reason.
    """
    try:
        yield
    except OSError as error:
        reason = reason_not_written(error, Path(str(where)) / "rows")
        raise DataError(
            f"{where}: features cannot be written ({reason}); make room, or choose another folder"
        ) from error
