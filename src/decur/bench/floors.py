"""What the parts of a training step cost at least: operations and bytes, counted from shapes."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor, nn

from decur.bench.counting import Operations, count
from decur.bench.device import Rates, measure_transfer
from decur.bench.loss import cost, views_compared
from decur.bench.views import moved_by_views
from decur.data import Batch
from decur.encoders.attention import encode
from decur.pretrain import Pretrainer

_DTYPES = {"16": torch.float16, "bf16": torch.bfloat16, "64": torch.float64}
_VIEWS = 2


def computing_dtype(precision: str) -> torch.dtype:
    """In which type Lightning lets matrix products run, given its `precision`."""
    if precision.startswith("transformer-engine"):
        return torch.bfloat16
    return _DTYPES.get(precision.split("-")[0], torch.float32)


class StepCost:
    """Operations and bytes of a model's step on a batch.

    Args:
        model: on any device; nothing is computed with it.
        batch: for its shapes.
        device: that will train.
        precision: Lightning's.
    """

    def __init__(
        self, model: Pretrainer, batch: Batch, device: torch.device, precision: str
    ) -> None:
        self.device, self.dtype = device, computing_dtype(precision)
        size = model.views.size
        pairs = len(batch["ids"])
        self.sensors = len(model.modalities)
        shadows = {name: copy.deepcopy(model.encoder(name)).to("meta") for name in model.encoders}
        images = [
            torch.empty(pairs, m.channels, *size, device="meta") for m in model.modalities.values()
        ]
        together = _Encoders(shadows)
        heads = [
            (
                copy.deepcopy(model.projectors[name]).to("meta"),
                torch.empty(pairs, shadow.dim, device="meta", requires_grad=True),
            )
            for name, shadow in shadows.items()
        ]
        self.encoders = _Counted.of(count(together, *images), *products(together, *images))
        self.projectors = _Counted.sum(
            _Counted.of(count(head, x), *products(head, x)) for head, x in heads
        )
        self.loss = cost(model.objective, list(model.modalities), pairs)
        self.dim, self.pairs = model.objective.dim, pairs
        self.sent = sum(x.nbytes for x in batch["images"].values())
        self.largest = max(x.nbytes for x in batch["images"].values())
        self.viewed = moved_by_views(batch["images"], size)
        trained = [p for p in model.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        self.weights = sum(p.nbytes for p in trained)

    @property
    def views(self) -> int:
        """How many views of a sensor the objective compares."""
        return views_compared(self.loss[2], self.sensors)

    def floors(
        self, optimizer: torch.optim.Optimizer, plain: Rates, fast: Rates
    ) -> dict[str, tuple[int, int, float]]:
        """`{part: (operations, bytes, seconds at least)}`.

        Layers that multiply move at least their weights, inputs and outputs once, in the type that
        the step computes in; backward as much as forward. The optimiser reads gradients, and reads
        and writes weights and its own state. Views and loss are float32.

        Args:
            optimizer: after a step.
            plain: rates of the device in float32.
            fast: in the type that the step computes in.
        """
        scale = torch.empty(0, dtype=self.dtype).element_size() / 4
        state = sum(
            x.nbytes
            for entry in optimizer.state.values()
            for x in entry.values()
            if isinstance(x, Tensor)
        )
        embeddings = self.pairs * self.dim * 4
        network = _Counted.sum([self.encoders, self.projectors])
        parts: dict[str, tuple[int, float, Rates, float]] = {
            "views": (0, self.viewed, plain, self.largest),
            "encoders": (*self.encoders.passed(scale), fast, self.encoders.typical * scale),
            "projectors": (*self.projectors.passed(scale), fast, self.projectors.typical * scale),
            "loss": (*self.loss[:2], plain, embeddings),
            "backward": (*network.returned(scale), fast, network.typical * scale),
            "optimiser": (0, 3 * self.weights + 2 * state, plain, self.weights),
        }
        found = {
            part: (operations, int(moved), rates.floor(operations, int(moved), int(size)))
            for part, (operations, moved, rates, size) in parts.items()
        }
        way = self.sent / measure_transfer(self.device, self.sent)
        return {"transfer": (0, self.sent if way else 0, way), **found}


@dataclass(frozen=True)
class _Counted:
    """Operations and bytes of one view; the step has two."""

    forward: int
    backward: int
    moved: int
    tensors: int

    @classmethod
    def of(cls, counted: Operations, moved: int, tensors: int) -> _Counted:
        return cls(counted.forward, counted.backward, moved, tensors)

    @classmethod
    def sum(cls, counts: Iterable[_Counted]) -> _Counted:
        columns = zip(*(astuple(each) for each in counts), strict=True)
        return cls(*map(sum, columns))

    @property
    def typical(self) -> float:
        """Mean size of a tensor that is moved, in bytes."""
        return self.moved / max(1, self.tensors)

    def passed(self, scale: float) -> tuple[int, float]:
        """Operations and bytes forward, a number being `scale` times as long as a float32."""
        return _VIEWS * self.forward, _VIEWS * self.moved * scale

    def returned(self, scale: float) -> tuple[int, float]:
        """The same backward, which moves at least as much."""
        return _VIEWS * self.backward, _VIEWS * self.moved * scale


def products(module: nn.Module, *inputs: Tensor) -> tuple[int, int]:
    """What the layers that multiply matrices move: weights, inputs and outputs of each, once.

    What is between them (normalisation, activation) can be done on the way and counts nothing.

    Args:
        module: on the meta device, where nothing is computed.
        *inputs: what it is called with.

    Returns:
        Bytes, and the number of tensors that they belong to.
    """
    sizes: list[int] = []

    def add(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        weights = [p for p in layer.parameters(recurse=False) if p.ndim > 1]
        if weights:
            sizes.extend(x.nbytes for x in (*weights, *given, out) if isinstance(x, Tensor))

    handles = [layer.register_forward_hook(add) for layer in module.modules()]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
    return sum(sizes), len(sizes)


class _Encoders(nn.Module):
    """All encoders as one module, since some attend to each other."""

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)

    def forward(self, *images: Tensor) -> Tensor:
        given = dict(zip(self.encoders, images, strict=True))
        return torch.cat(list(encode(self.encoders, given).values()), dim=1)
