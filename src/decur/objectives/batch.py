"""The embeddings of a batch over all processes, as float32, without absent samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from decur.devices import send
from decur.errors import ConfigError
from decur.objectives.distributed import gather_integers, gather_masks, gather_rows, world

Embeddings = Mapping[str, tuple[Tensor, Tensor]]
Present = Mapping[str, Tensor]
Operand = tuple[str, int]
"""A modality and the index of its view."""


class GlobalBatch:
    """Embeddings of all processes, from which terms take the samples that they are about.

    Samples without a sensor are left out by selecting rows, not by multiplying with zero: whatever
    their embeddings hold, it reaches neither value nor gradient. Each view is gathered and cast
    once: those that `gather` is told of together, any other when a term first asks for it.

    Args:
        embeddings: `{modality: (view 1, view 2)}`, each (N, K), N samples of this process.
        present: `{modality: (N,) bool}`; None where every sample has every modality. On the CPU
            nothing waits for the device: how many samples a term has is known on the host.
        dim: K that is expected.
        distributed: take in the rows of the other processes too.

    Raises:
        ConfigError: if shapes, names or types do not fit together.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        present: Present | None,
        dim: int,
        distributed: bool = True,
    ) -> None:
        rows = check(embeddings, present, dim)
        self.names = list(embeddings)
        self.rank, self.world = world() if distributed else (0, 1)
        self._embeddings = embeddings
        self._views: dict[Operand, Tensor] = {}
        device = next(iter(embeddings.values()))[0].device
        own = [rows, int(present is not None)]
        everyone = gather_integers(own) if distributed else [own]
        self._counts = [count for count, _ in everyone]  # samples of each process
        self._first = sum(self._counts[: self.rank])  # first row of this process
        self._device = device
        self._masks: dict[str, Tensor] | None = None
        if any(masked for _, masked in everyone):
            everything = torch.ones(rows, dtype=torch.bool)
            masks = [(present or {}).get(name, everything).cpu() for name in self.names]
            stacked = torch.stack(masks, 1)  # (n, M)
            stacked = gather_masks(stacked, self._counts)  # (N, M)
            self._masks = dict(zip(self.names, stacked.T, strict=True))  # (N,) each
        self._selections: list[Selection] = []
        self._of_names: dict[frozenset[str], Selection] = {}

    def samples(self, *names: str) -> Selection:
        """Return the samples that have all of these modalities, as one object for equal samples."""
        key = frozenset(names)
        if key not in self._of_names:
            self._of_names[key] = self._select(key)
        return self._of_names[key]

    def _select(self, names: frozenset[str]) -> Selection:
        total, first = sum(self._counts), self._first
        last = first + self._counts[self.rank]
        index = None
        if self._masks is not None:
            index = (
                torch.stack([self._masks[name] for name in sorted(names)]).all(0).nonzero()[:, 0]
            )
            if len(index) == total:
                index = None
            else:
                first, last = (int((index < edge).sum()) for edge in (first, last))
                total = len(index)
        for known in self._selections:
            if known.same_as(index):  # so that what is computed of it once serves every term
                return known
        rows = None if index is None else send(index, self._device)
        self._selections.append(Selection(total, slice(first, last), index, rows))
        return self._selections[-1]

    def take(self, operand: Operand, samples: Selection) -> Tensor:
        """Return a view's embeddings of the selected samples of all processes: (N', K) float32."""
        z = self._view(operand)  # (N, K)
        return z if samples.rows is None else z.index_select(0, samples.rows)

    def gather(self, operands: Iterable[Operand]) -> None:
        """Gather all views that the terms are about in one exchange, in place of one for each."""
        wanted = list(dict.fromkeys(operands))
        if self.world > 1:
            views = [self._embeddings[name][view].float() for name, view in wanted]
            together = gather_rows(torch.stack(views, 1), self._counts)  # (N, V, K)
            self._views.update(zip(wanted, together.unbind(1), strict=True))

    def _view(self, operand: Operand) -> Tensor:
        if operand not in self._views:
            name, view = operand
            self._views[operand] = gather_rows(self._embeddings[name][view].float(), self._counts)
        return self._views[operand]

    def nothing(self, *operands: Operand) -> Tensor:
        """Return zero with a zero gradient: a term with too few samples in the batch.

        It still depends on the embeddings, since DDP waits for a gradient of every parameter.
        """
        return torch.stack([self._view(operand)[:0].sum() for operand in operands]).sum()

    def own_part(self, part: slice) -> slice:
        """Return the dimensions of `part` that this process works on."""
        width = part.stop - part.start
        edges = [part.start + width * rank // self.world for rank in (self.rank, self.rank + 1)]
        return slice(*edges)


class Selection:
    """Some samples of a global batch.

    Args:
        size: how many.
        own: which of them are this process's.
        index: (size,) their rows, on the CPU; None for all.
        rows: the same on the device of the embeddings.
    """

    def __init__(
        self, size: int, own: slice, index: Tensor | None = None, rows: Tensor | None = None
    ) -> None:
        self.size = size
        self.own = own
        self.index = index
        self.rows = rows

    def same_as(self, index: Tensor | None) -> bool:
        """Return whether `index` names the same samples."""
        if index is None or self.index is None:
            return index is self.index
        return torch.equal(self.index, index)


def check(embeddings: Embeddings, present: Present | None, dim: int) -> int:
    """Check that shapes, names and types fit together; return the number of samples.

    Raises:
        ConfigError: if they do not.
    """
    if not embeddings:
        raise ConfigError("the objective needs the embeddings of at least one modality, got none")
    expected = len(next(iter(embeddings.values()))[0])
    for name, views in embeddings.items():
        if len(views) != 2:
            raise ConfigError(f"embeddings of {name!r}: needs two views, got {len(views)}")
        for z in views:
            if z.ndim != 2 or z.shape[1] != dim:
                raise ConfigError(
                    f"embeddings of {name!r} have shape {tuple(z.shape)}, the objective expects "
                    f"(N, {dim}): set its dim to the width of the projector"
                )
            if len(z) != expected:
                raise ConfigError(
                    f"embeddings of {name!r} hold {len(z)} samples, others {expected}: "
                    "fill absent samples with any value and mark them False in present"
                )
    if present is not None:
        for name in embeddings:
            mask = present.get(name)
            if mask is None:
                raise ConfigError(f"present lacks modality {name!r}; it has {', '.join(present)}")
            if mask.dtype != torch.bool or mask.shape != (expected,):
                raise ConfigError(
                    f"present of {name!r} must be bool of shape ({expected},), "
                    f"is {mask.dtype} of shape {tuple(mask.shape)}"
                )
    return expected
