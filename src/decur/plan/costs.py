"""Parameters, operations and bytes of a training step: counted from shapes, nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from decur.bench.counting import Kept, count
from decur.objectives import Objective
from decur.pretrain import Pretrainer

_FLOAT = 4  # bytes: views and what the objective works on are float32
_VIEWS = 2
# States of the optimiser for each parameter: LARS has a momentum, AdamW a mean and a variance.
_STATES = {"lars": 1, "adamw": 2}


@dataclass(frozen=True)
class Part:
    """One network, or the objective.

    Args:
        name: "encoder s1", "projector s1", "objective".
        parameters: number of weights.
        forward: floating-point operations of a step's forward pass, all views; a multiply-add is 2.
        backward: those of its backward pass.
    """

    name: str
    parameters: int
    forward: int
    backward: int


def parts_of(model: Pretrainer, objective: Objective, batch: int) -> list[Part]:
    """What a step asks of each part of a model.

    Args:
        model: on the meta device.
        objective: on the CPU.
        batch: samples of the step.

    Raises:
        ConfigError: if the encoders do not take views of this size.
    """
    found = []
    images = {
        name: torch.empty(2, modality.channels, *model.views.size, device="meta")
        for name, modality in model.modalities.items()
    }
    steps = _VIEWS * batch // 2  # passes of two pictures
    for name, x in images.items():
        for kind, module, inputs in (
            ("encoder", model.encoders[name], x),
            ("projector", model.projectors[name], _vectors(model, name)),
        ):
            cost = count(module, inputs)
            found.append(
                Part(f"{kind} {name}", cost.parameters, cost.forward * steps, cost.backward * steps)
            )
    with _nothing_computed():
        loss = count(*_loss(objective, list(images), batch))
    found.append(Part("objective", loss.parameters, loss.forward, loss.backward))
    return found


def _vectors(model: Pretrainer, name: str) -> Tensor:
    vectors = torch.empty(2, model.encoder(name).dim, device="meta")
    return vectors.requires_grad_()  # it is what the encoder is trained by


def _nothing_computed() -> FakeTensorMode:
    """Tensors that have a shape and no values, on a CPU: objectives ask for a device's autocast."""
    return FakeTensorMode(allow_non_fake_inputs=True)


class _Loss(nn.Module):
    """An objective of plain tensors: the two views of the first sensor, then of the next."""

    def __init__(self, objective: Objective, names: list[str]) -> None:
        super().__init__()
        self.objective, self.names = objective, names

    def forward(self, *views: Tensor) -> Tensor:
        pairs = zip(views[::_VIEWS], views[1::_VIEWS], strict=True)
        return self.objective(dict(zip(self.names, pairs, strict=True)))["loss"]


def _loss(objective: Objective, names: list[str], batch: int) -> tuple[Any, ...]:
    """A module and what it is called with."""
    shape = (batch, objective.dim)
    views = [torch.empty(shape, requires_grad=True) for _ in range(_VIEWS * len(names))]
    return _Loss(objective, names), *views


def kept_by_loss(objective: Objective, names: list[str], batch: int) -> int:
    """Bytes that an objective keeps for the backward pass, the embeddings among them.

    Args:
        objective: on the CPU.
        names: of the sensors.
        batch: samples, those of other processes included.
    """
    with _nothing_computed(), Kept(objective.parameters()) as kept:
        module, *views = _loss(objective, names, batch)
        module(*views)
    return kept.bytes


@dataclass(frozen=True)
class Memory:
    """Bytes on a device at the end of a step's forward pass, when most is there.

    The gradients of the step before are still there then. What kernels take for a moment is not
    in it, nor what the allocator leaves unused, nor a GPU's own context.

    Args:
        weights: parameters and buffers.
        gradients: of the parameters.
        optimizer: its state.
        activations: what encoders and projectors keep for the backward pass.
        loss: what the objective keeps, of the gathered embeddings of all devices.
        views: the two augmented views of each sensor.
        pictures: the batch they are made of.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    loss: int
    views: int
    pictures: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def fixed(self) -> int:
        """What does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Shape:
    """What the memory of a step follows from.

    Args:
        weights: bytes of parameters and buffers.
        trained: bytes of the parameters that have a gradient.
        states: of the optimiser, for each of these.
        pixels: numbers in one view of all sensors of a sample.
        pictures: bytes of a sample's pictures as they are read.
        activations: bytes kept by encoders and projectors: those that do not depend on the batch,
            as weights cast to another precision; and those of each sample.
    """

    weights: int
    trained: int
    states: int
    pixels: int
    pictures: float = 0.0
    activations: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def of(cls, model: Pretrainer, itemsize: int) -> Shape:
        """What a model tells; pictures and activations have to be measured.

        Args:
            model: on any device.
            itemsize: bytes of a parameter.
        """
        everything = [*model.parameters(), *model.buffers()]
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        height, width = model.views.size
        settings = model.optimizer_settings
        states = _STATES[settings.name] if settings.name != "lars" or settings.momentum else 0
        return cls(
            sum(x.numel() for x in everything) * itemsize,
            trained * itemsize,
            states,
            sum(m.channels for m in model.modalities.values()) * height * width,
        )

    def memory(self, samples: int, loss: int) -> Memory:
        """Of a step.

        Args:
            samples: of the batch that are on the device.
            loss: bytes that the objective keeps.
        """
        fixed, each = self.activations
        return Memory(
            self.weights,
            self.trained,
            self.trained * self.states,
            round(fixed + each * samples),
            loss,
            _VIEWS * _FLOAT * self.pixels * samples,
            round(self.pictures * samples),
        )


def itemsize(precision: str) -> int:
    """Bytes of a parameter in one of Lightning's precisions."""
    if precision in ("bf16-true", "16-true"):
        return 2
    return 8 if precision.startswith("64") else 4


def dtype_of(precision: str) -> torch.dtype:
    """Of the matrix products in one of Lightning's precisions."""
    for start, dtype in _DTYPES.items():
        if precision.startswith(start):
            return dtype
    return torch.float32


_DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "16": torch.float16,
    "64": torch.float64,
}
