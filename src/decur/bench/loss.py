"""`decur bench loss`: an objective forward and backward, alone, as its embeddings grow wider."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from decur.bench.counting import count
from decur.bench.device import Rates
from decur.bench.timing import Row, measure, peak_memory
from decur.objectives import Objective

_FLOAT = 4  # bytes: objectives compute in float32


def bench_loss(
    objectives: Sequence[Objective],
    modalities: Sequence[str],
    batch: int,
    device: torch.device,
    rates: Rates,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure objectives of different widths on embeddings that correlate a little.

    Floor: the matrix products that the objective makes, or its embeddings read and their gradients
    written once, whichever takes longer. A row's "growth" is its time for a dimension, relative to
    that of the first row: 1 where time is linear in K.

    Args:
        objectives: to be measured, one after the other.
        modalities: names of the sensors.
        batch: samples, N.
        device: that computes.
        rates: of that device in float32.
        seconds: how long each is measured.

    Yields:
        A row for each objective: forward and backward together.
    """
    first: float | None = None
    for objective in objectives:
        objective = copy.deepcopy(objective).to(device)
        views = correlated(objective, modalities, batch, device)

        def step(
            objective: Objective = objective, views: dict[str, tuple[Tensor, Tensor]] = views
        ) -> None:
            objective(views)["loss"].backward()
            for view in [z for pair in views.values() for z in pair]:
                view.grad = None

        timing = measure(step, device, seconds)
        a_dimension = timing.median / objective.dim
        first = first or a_dimension
        operations, moved, compared = cost(objective, modalities, batch)
        yield Row(
            f"{type(objective).__name__} {batch} x {objective.dim}",
            batch,
            timing,
            memory=peak_memory(step, device),
            operations=operations,
            moved=moved,
            floor=rates.floor(operations, moved, batch * objective.dim * _FLOAT),
            about={"dim": objective.dim, "views": compared, "growth": a_dimension / first},
        )


def correlated(
    objective: Objective, modalities: Sequence[str], batch: int, device: torch.device
) -> dict[str, tuple[Tensor, Tensor]]:
    """Embeddings (N, K) of two views of each sensor, which share half of their variance."""
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(batch, objective.dim, generator=generator)

    def view() -> Tensor:
        noise = torch.randn(batch, objective.dim, generator=generator)
        return (scene + noise).to(device).requires_grad_()

    return {name: (view(), view()) for name in modalities}


def cost(objective: Objective, modalities: Sequence[str], batch: int) -> tuple[int, int, int]:
    """Operations and least bytes moved, forward and backward, without computing anything.

    Args:
        objective: of any width.
        modalities: names of the sensors.
        batch: samples, N.

    Returns:
        Floating-point operations, bytes, and how many views the objective compares in all: cross-
        modal methods leave the second one of each sensor alone.
    """
    module = _OfViews(copy.deepcopy(objective).cpu(), modalities)
    with FakeTensorMode(allow_non_fake_inputs=True):  # knows autocast, which "meta" does not
        shape = (batch, objective.dim)
        views = [torch.empty(shape, requires_grad=True) for _ in range(2 * len(modalities))]
        counted = count(module, *views)
        grads = torch.autograd.grad(module(*views), views, allow_unused=True)
    compared = sum(grad is not None for grad in grads)
    moved = 2 * compared * batch * objective.dim * _FLOAT
    return counted.forward + counted.backward, moved, compared


def views_compared(counted: int, modalities: int) -> int:
    """How many views of a sensor an objective compares, of all that `cost` counts."""
    return -(-counted // modalities)


class _OfViews(nn.Module):
    """An objective as a module of plain tensors: both views of the first sensor, then the next."""

    def __init__(self, objective: Objective, modalities: Sequence[str]) -> None:
        super().__init__()
        self.objective, self.names = objective, list(modalities)

    def forward(self, *views: Tensor) -> Tensor:
        pairs = zip(views[::2], views[1::2], strict=True)
        return self.objective(dict(zip(self.names, pairs, strict=True)))["loss"]
