"""A training step taken apart: who spends how long, with the device waited for in between."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Container, Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from decur.bench.device import wait
from decur.data import Batch
from decur.pretrain import Pretrainer
from decur.pretrain.compiling import Modules, Networks

PARTS = (
    "loading",
    "transfer",
    "views",
    "encoders",
    "projectors",
    "loss",
    "monitors",
    "backward",
    "optimiser",
    "other",
)


class Clock:
    """Gives the time since the last mark to a part, once the device has done what it was given.

    Args:
        device: that is waited for.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.steps: list[dict[str, float]] = []  # seconds of each part, one a step
        self._now = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def mark(self, part: str) -> None:
        """All since the last mark was this part."""
        wait(self.device)
        now = time.perf_counter()
        self._now[part] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """All within is this part, all before was another."""
        self.mark("other")
        yield
        self.mark(name)

    def end_step(self) -> None:
        """A new step begins."""
        self.steps.append(self._now)
        self._now = dict.fromkeys(PARTS, 0.0)


class WatchedPretrainer(Pretrainer):
    """A `Pretrainer` that tells a clock, while it has one, where it is in its step."""

    clock: Clock | None = None

    def make_views(self, batch: Batch, epoch: int) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Pretrainer.make_views`."""
        with self._part("views"):
            return super().make_views(batch, epoch)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """See `Pretrainer.transfer_batch_to_device`."""
        with self._part("transfer"):
            return super().transfer_batch_to_device(batch, device, index)

    def _part(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext() if self.clock is None else self.clock.part(name)

    def _networks(self) -> Networks:
        called = super()._networks()
        return called if self.clock is None else _Between(called, self.clock)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """See `Pretrainer.configure_optimizers`; what one pass compiled, the next one uses."""
        called = self._called
        configured = super().configure_optimizers()
        self._called = called
        return configured

    @contextlib.contextmanager
    def watched(self, clock: Clock) -> Iterator[None]:
        """Tell this clock, until the end of the block."""
        before = self.objective.register_forward_pre_hook(_EmbeddingsDone(clock))
        after = self.objective.register_forward_hook(lambda *_: clock.mark("loss"))
        self.clock = clock
        try:
            yield
        finally:
            self.clock = None
            before.remove()
            after.remove()


class _Between(Networks):
    """Networks that mark where the encoders end, around what may be compiled and not in it."""

    def __init__(self, inner: Networks, clock: Clock) -> None:
        self.inner, self.clock = inner, clock

    def of(self, partial: Container[str]) -> tuple[Modules, Modules]:
        encoders, projectors = self.inner.of(partial)
        return encoders, {name: _Marked(z, self.clock) for name, z in projectors.items()}


class _Marked(nn.Module):
    def __init__(self, projector: nn.Module, clock: Clock) -> None:
        super().__init__()
        self.projector, self.clock = projector, clock

    def forward(self, x: Tensor) -> Tensor:
        self.clock.mark("encoders")
        z = self.projector(x)
        self.clock.mark("projectors")
        return z


class _EmbeddingsDone:
    """Where the loss begins, and where its backward pass ends.

    Autograd runs what was made last first. When it comes to the first of the embeddings, all of
    the loss is behind it.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        self.clock.mark("other")
        arrived: list[bool] = []

        def back(grad: Tensor) -> None:
            if not arrived:
                arrived.append(True)
                self.clock.mark("loss")

        for z in [z for pair in arguments[0].values() for z in pair]:
            if z.requires_grad:
                z.register_hook(back)


class Watch(L.Callback):
    """Marks what Lightning does around the model's own parts.

    Args:
        clock: to be told.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_before_zero_grad(self, *_: Any) -> None:
        """The loss has been looked at."""
        self.clock.mark("monitors")

    def on_before_backward(self, *_: Any) -> None:
        """Old gradients are gone."""
        self.clock.mark("optimiser")

    def on_after_backward(self, *_: Any) -> None:
        """Gradients are there."""
        self.clock.mark("backward")

    def on_before_optimizer_step(self, *_: Any) -> None:
        """Clipping, if any, and the step are next."""
        self.clock.mark("other")

    def on_train_batch_end(self, *_: Any) -> None:
        """Parameters are new, and so is the learning rate."""
        self.clock.mark("optimiser")
        self.clock.end_step()
