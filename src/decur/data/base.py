"""What every data set gives: samples of modalities, some of which may be missing."""

from __future__ import annotations

import copy
import inspect
import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Self, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from decur.data.files import read_files
from decur.digest import file_states, files_in, files_named
from decur.errors import BadSampleError, ConfigError
from decur.modality import Modality


class Sample(TypedDict):
    """One place: its pictures by modality (any may be missing), and what is known of it."""

    id: str
    images: dict[str, Tensor]  # (C, H, W), raw units, uint8 or float32
    target: NotRequired[dict[str, Tensor]]
    bad: NotRequired[tuple[str, str]]  # file and reason, where the sample could not be read


class Batch(TypedDict):
    """Samples stacked. Absent images are zeros and False in `present`."""

    images: dict[str, Tensor]  # (B, C, H, W)
    present: dict[str, Tensor]  # (B,) bool
    target: dict[str, Tensor]  # (B, ...)
    ids: list[str]
    bad: list[tuple[str, str]]  # (file, reason) of every sample that could not be read


@dataclass(frozen=True)
class Target:
    """What a label is.

    Args:
        kind: "class" (one of `classes`: int64 scalar, -1 unknown), "multilabel" (float32 vector
            of 0/1, NaN unknown), "scalar" (float32 number, NaN unknown), "mask" (int64 (H, W),
            255 unknown).
        classes: names in order of their index; empty for scalars.
        modalities: sensors that can see it, where the data set knows; empty for all.
    """

    kind: Literal["class", "multilabel", "scalar", "mask"]
    classes: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()

    def unknown(self, size: tuple[int, int] = (1, 1)) -> Tensor:
        """The value that stands for "not labelled"; `size` is a mask's height and width."""
        if self.kind == "class":
            return torch.tensor(-1)
        if self.kind == "mask":
            return torch.full(size, 255, dtype=torch.int64)
        if self.kind == "multilabel":
            return torch.full((len(self.classes),), torch.nan)
        return torch.tensor(torch.nan)


class PairedDataset(Dataset[Sample], ABC):
    """Base of every data set. Knows files and samples; nothing of methods or views.

    Attributes:
        modalities: `{name: Modality}`, each with its `size` set.
        ids: of the samples, in index order.
        present: `{name: (N,) bool array}`: which samples have which modality.
        targets: `{name: Target}`, those that are to be read, see `only`; empty where nothing is
            labelled.
        groups: for each sample the name of its group (a scene, a cluster of tiles) that must not
            be split between training and test; None where the data names none.
        labels: `{id: {target: value}}`, where they are known without reading a file for each
            sample; what is packed is told apart by them, too. None where they are not.
        wanted: names of the sensors whose pictures are to be read, see `only`; None: all.
    """

    _made_of: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    modalities: dict[str, Modality]
    ids: list[str]
    present: dict[str, np.ndarray]
    targets: dict[str, Target]
    groups: list[str] | None = None
    labels: Mapping[str, Mapping[str, str]] | None = None
    wanted: Collection[str] | None = None

    def __new__(cls, *args: Any, **options: Any) -> Self:
        """Keep what it is made of: settings that no public attribute shows tell data apart, too."""
        made = super().__new__(cls)
        made._made_of = (args, options)
        return made

    @property
    def made_of(self) -> dict[str, Any]:
        """All arguments that it was made of, given or not."""
        args, options = self._made_of
        bound = inspect.signature(type(self)).bind(*args, **options)
        bound.apply_defaults()
        return bound.arguments

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def read(self, index: int) -> Sample:
        """Read one sample.

        Raises:
            BadSampleError: naming the file, if it cannot be used.
        """

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def only(
        self, names: Collection[str] | None = None, targets: Collection[str] | None = None
    ) -> Self:
        """The same samples, of which only some sensors' pictures and some labels need be read.

        What would wait for the others uses this: they may be left out, or come besides where that
        costs nothing. A label that is not read cannot make a sample unusable.

        Args:
            names: of the sensors; None: as it is.
            targets: names of the labels; None: as it is.
        """
        made = copy.copy(self)
        if names is not None:
            made.wanted = tuple(names)
        if targets is not None:
            made.targets = {n: spec for n, spec in self.targets.items() if n in targets}
        return made

    def sensors_of(self, index: int) -> list[str]:
        """Those of a sample whose pictures are to be read: they are there, and wanted."""
        wanted = self.modalities if self.wanted is None else self.wanted
        return [n for n in self.modalities if n in wanted and self.present[n][index]]

    def files(self, index: int) -> Sequence[str | Path]:
        """The files that are read for one sample; none where it has no files of its own.

        Raises:
            BadSampleError: naming the folder, if it must be listed and cannot be.
        """
        return ()

    def read_bytes(self, index: int) -> np.ndarray | None:
        """The bytes of one sample as they are stored, not decoded: (bytes,) uint8.

        Of its `files`, one after the other; None where nothing is read for it. A data set with
        many samples in a file gives what it reads of that.

        Raises:
            BadSampleError: naming the file, if it cannot be read.
        """
        files = self.files(index)
        return read_files(files) if files else None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The order of an epoch of training, each sample once: (N,) indices.

        Fully random; a data set that is read from afar has one that suits it.

        Args:
            rng: of the epoch.
        """
        return rng.permutation(len(self))

    def digest_parts(self) -> object:
        """Return what tells this data set from others, for `decur.digest`.

        These are its arguments, whatever it holds (what `pickle` would save), and path, size and
        modification time of every file that it reads: those of its samples (`files`), those that
        lie in its folder `root`, and whatever it holds that names a file. Where a class does not
        say which files it reads, all files below a folder that it holds count.
        """
        held = self.__getstate__()
        if isinstance(held, dict):
            held = {key: value for key, value in held.items() if key != "_made_of"}
        given = [*self.made_of.values(), *(held.values() if isinstance(held, dict) else ())]
        silent = type(self).files is PairedDataset.files
        read = {*files_in(getattr(self, "root", None) or ""), *files_named(given, below=silent)}
        bad = []
        for index in range(len(self)):
            try:
                read.update(os.fspath(file) for file in self.files(index))
            except BadSampleError as error:
                bad.append((error.path, error.reason))
        return self.made_of, held, file_states(read), bad

    def describe(self) -> str:
        """One line for the log: how many samples, and how many lack which sensor."""
        n = len(self)
        parts = [f"{n} samples"]
        for name, has in self.present.items():
            bands = self.modalities[name].channels
            size = self.modalities[name].size
            shape = f"{bands} x {size[0]} x {size[1]}" if size else f"{bands} bands"
            lacking = n - int(has.sum())
            parts.append(f"{name} ({shape}" + (f", {lacking} absent)" if lacking else ")"))
        return ", ".join(parts)


class SkipBad(Dataset[Sample]):
    """Turns a bad sample into one without images, so that a run survives one corrupt file.

    Args:
        dataset: any data set.
    """

    def __init__(self, dataset: PairedDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            return self.dataset[index]
        except BadSampleError as error:
            return {
                "id": self.dataset.ids[index],
                "images": {},
                "bad": (error.path, error.reason),
            }


class Collate:
    """Samples to a `Batch`; a class and no closure, so that it reaches worker processes.

    Args:
        modalities: those of the data set, sizes set.
        targets: those of the data set.
    """

    def __init__(self, modalities: dict[str, Modality], targets: dict[str, Target]) -> None:
        self.modalities = modalities
        self.targets = targets

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stack samples; those without a modality get zeros and False in `present`."""
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


def check_choice(reader: str, option: str, value: object, known: Sequence[object]) -> None:
    """See that an option of a data set is one of those there are.

    Raises:
        ConfigError: naming the data set, the option and the choices.
    """
    if value not in known:
        choices = ", ".join(str(choice) for choice in known)
        raise ConfigError(f"{reader}: {option} is {value!r}; choose from {choices}")
