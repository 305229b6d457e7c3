"""Predictors: models of `decur transfer`, whose outputs can be averaged over windows."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from decur.data.sample import Target
from decur.digest import digest
from decur.encoders.base import Encoder, refuse_size
from decur.errors import PIXELS, DataError, reading
from decur.features import scaled
from decur.modality import Modality
from decur.transfer.heads import CMX, load_model
from decur.transfer.tasks import Task, make_task

log = logging.getLogger(__name__)

MODEL = "model.safetensors"
Size = tuple[int, int]  # height and width


class Predictor(ABC):
    """Something that gives numbers for each place of a window, which are blended with others'.

    Attributes:
        says: what a prediction is: a "class", "flags" or "numbers", as `Task` has it.
        dense: whether there is one for each pixel.
        classes: their names; none for numbers and features.
        bands: names of the output's channels.
        encoders: `{sensor: encoder}`.
        modalities: `{sensor: how its raw pictures are scaled}`.
        pictures: `{sensor: height and width of the pictures that it was trained on}`, None where
            that is not known.
        cell: pixels of a window along each step of the output: 1, or an encoder's stride.
        needs_all: whether nothing can be told where a sensor is absent.
        seen_absent: whether some sample of the training lacked a sensor; None: not known.
        convolutional: whether a place is seen alike in windows of any size that hold what lies
            around it, since no encoder has attention.
    """

    says: Literal["class", "flags", "numbers"] = "numbers"
    dense: bool = False
    classes: tuple[str, ...] = ()
    bands: tuple[str, ...]
    encoders: Mapping[str, Encoder]
    modalities: Mapping[str, Modality]
    pictures: Mapping[str, Size | None]
    cell: int = 1
    needs_all: bool = False
    seen_absent: bool | None = None
    convolutional: bool = False
    resized: int | None = None  # height and width that the pictures of a training are resized to
    reference: str  # the sensor whose pixels windows have; the first unless a scene says otherwise

    @property
    @abstractmethod
    def digest(self) -> str:
        """Return what tells this predictor from others."""

    @abstractmethod
    def to(self, device: str) -> None:
        """Move the weights to a device."""

    @abstractmethod
    def predict(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return the output for windows of raw pictures.

        Args:
            images: `{sensor: (B, C, H, W)}` in raw units, NaN where there is no measurement.
            present: `{sensor: (B,) bool}` on the CPU.

        Returns:
            (B, bands, H / cell, W / cell) float32; (B, bands, 1, 1) where a window has one answer.
        """

    def input_size(self, name: str, window: Size) -> Size | None:
        """Return the size that windows of a sensor are resized to; None for their own.

        Windows are resized as the pictures of the training were, so that things have the size on
        the picture that they had there.

        Args:
            name: of the sensor.
            window: height and width on the grid.
        """
        own, base = self.pictures.get(name), self.pictures.get(self.reference)
        if base is None:
            return (self.resized, self.resized) if self.resized else None
        wanted = (self.resized, self.resized) if self.resized else own or base
        height, width = (
            max(1, round(w * s / b)) for w, s, b in zip(window, wanted, base, strict=True)
        )
        return None if (height, width) == window else (height, width)

    def refuse_window(self, window: Size) -> None:
        """Refuse windows of a size that an encoder does not take.

        Raises:
            ConfigError: with what the encoder says.
        """
        for name, encoder in self.encoders.items():
            size = self.input_size(name, window) or window
            refuse_size(encoder, self.modalities[name], size=size, key="window")


class HeadPredictor(Predictor):
    """A model of `decur transfer`.

    Args:
        path: its folder, or the file `model.safetensors` in it.
    """

    def __init__(self, path: Path) -> None:
        file = path / MODEL if path.is_dir() else path
        self.model, header = load_model(file)
        with reading(file, "copy it anew", "its header is damaged"):
            self.task = _checked_task(file, header, self.model.outputs)
        self.file = file
        self.says, self.dense = self.task.says, self.task.dense
        self.classes, self.bands = self.task.classes, self.task.bands
        self.encoders = {name: self.model.encoder(name) for name in self.model.encoders}
        self.modalities = {name: self.model.modality(name) for name in self.encoders}
        self.reference = next(iter(self.encoders))
        known = header.get("pictures") or {}
        self.pictures = {
            name: _size(known.get(name)) or modality.size
            for name, modality in self.modalities.items()
        }
        self.resized = header.get("size")
        self.needs_all = isinstance(self.model, CMX)
        self.convolutional = not any(map(_attends, self.model.modules()))
        self.seen_absent = header.get("absent")
        self.ridge = header.get("probe") == "ridge"

    @property
    def digest(self) -> str:
        """See `Predictor.digest`."""
        return digest(self.model, self.pictures, self.resized, self.ridge)

    def to(self, device: str) -> None:
        """See `Predictor.to`."""
        self.model.to(device)

    @torch.inference_mode()
    def predict(self, images: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Return probabilities, scores of a ridge, or numbers; see `Predictor.predict`."""
        first = images[self.reference]
        window = (first.shape[-2], first.shape[-1])
        pictures = {}
        for name, x in images.items():
            x = scaled(x, self.modalities[name], size=self.input_size(name, window))
            pictures[name] = x.contiguous(memory_format=torch.channels_last)
        output: Tensor = self.model(pictures, present, window if self.dense else None)
        return self.answers(output.float())

    def answers(self, output: Tensor) -> Tensor:
        """Return what `Task.answers` makes of the model's output (B, K, ...): (B, K, h, w)."""
        found = self.task.answers(output, least_squares=self.ridge)
        return found if self.dense else found[:, :, None, None]


def _attends(module: nn.Module) -> bool:
    """Return whether a layer is an attention, by its class: timm, torch and decur name them so."""
    name = type(module).__name__.lower()
    return "attention" in name or "attn" in name


def _checked_task(file: Path, header: Mapping[str, Any], outputs: int) -> Task:
    """Return what a header says the model has learned.

    Args:
        file: for messages.
        header: of a model of `decur transfer`.
        outputs: their number.

    Raises:
        DataError: naming the key that does not say what the model's outputs are, or of which
            pictures.
    """
    kind, classes, known = header.get("kind"), header.get("classes"), header.get("pictures") or {}
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    target = Target(str(kind), tuple(map(str, classes or ())) if named else ())
    try:
        task = make_task(str(header.get("target")), target)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error
    sizes = [header.get("size")]
    if isinstance(known, dict):
        sizes += [side for size in known.values() for side in (size or ())]
    holds = {
        "target": isinstance(header.get("target"), str),
        "classes": named and task.outputs == outputs,
        "pictures": isinstance(known, dict) and all(len(v or (1, 1)) == 2 for v in known.values()),
        "size": all(
            side is None or (isinstance(side, int) and PIXELS[0] <= side <= PIXELS[1])
            for side in sizes
        ),
    }
    for key, right in holds.items():
        if not right:
            raise DataError(f"{file}: {key!r} of its header does not fit the model; copy it anew")
    return task


def _size(value: object) -> Size | None:
    return (int(value[0]), int(value[1])) if isinstance(value, list | tuple) else None


def warn_absent(predictor: Predictor, absent: Sequence[str], where: str) -> None:
    """Warn of sensors that are absent, where no sample of the training lacked any.

    Args:
        predictor: what predicts.
        absent: the sensors, each with how many samples lack it where that is not all.
        where: what lacks them, as "the scene".
    """
    if absent and predictor.seen_absent is False:
        log.warning(
            "%s has no %s, which no sample of the training lacked; expect worse predictions than "
            "the test part promised",
            where,
            " and no ".join(absent),
        )


def open_predictor(path: str | os.PathLike[str]) -> HeadPredictor:
    """Return what a folder or file holds, ready to predict on the CPU.

    Args:
        path: a folder of `decur transfer`, or its `model.safetensors`.

    Raises:
        DataError: if it holds no model.
    """
    return HeadPredictor(Path(path))
