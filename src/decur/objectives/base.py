"""The base of every pretraining method, and their registry: embeddings to named loss terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from itertools import combinations, permutations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from decur.errors import ConfigError
from decur.objectives.batch import Embeddings, GlobalBatch, Operand, Present
from decur.objectives.blocks import PREFIX, find_part
from decur.objectives.distributed import with_sum_over_processes
from decur.registry import Made, Registry

# Methods by the name of their class, as `--objective NAME` takes it.
OBJECTIVES: Registry[type[Objective]] = Registry("objective", "decur.objectives")


class Objective(Made, nn.Module, ABC):
    """Base of every method: pure mathematics on embeddings.

    To add one, write a file with a subclass that `OBJECTIVES.register` names, and its `terms`.

    Float32 inside, whatever comes in and whether or not autocast is on. Under `torch.distributed`
    the embeddings of all processes make one batch: term values are those of the whole batch on
    every process, and the mean of the parameters' gradients over the processes (what DDP forms) is
    the gradient of one process that holds the whole batch. All processes must call it together.

    Args:
        dim: width of the embeddings, K.

    Attributes:
        dim: K.
        parts: which dimensions are "common", which "unique" and which of a block, by the names
            that `decur.objectives.blocks` explains; empty parts are left out.
        needs_whole_batch: why the gradients of small batches do not add up to that of a large one,
            so that gradient accumulation changes the method; None where they do.
        forms: examples of the options whose form a type does not tell, for error messages.
        least_modalities: the smallest number of modalities on which the method makes sense.

    Raises:
        ConfigError: if a value is out of range.
    """

    registry: ClassVar[Registry[type[Objective]]] = OBJECTIVES
    needs_whole_batch: ClassVar[str | None] = None
    forms: ClassVar[Mapping[str, str]] = {}
    least_modalities: ClassVar[int] = 1

    def __init__(self, dim: int) -> None:
        super().__init__()
        if not isinstance(dim, int) or dim < 1:
            raise ConfigError(f"dim is the width of the embeddings, at least 1; is {dim!r}")
        self.dim = dim
        self.parts: dict[str, slice] = {"common": slice(0, dim)}

    def forward(self, embeddings: Embeddings, present: Present | None = None) -> dict[str, Tensor]:
        """Return the loss and its terms.

        Args:
            embeddings: `{modality: (view 1, view 2)}`, each (N, K), N samples of this process.
            present: `{modality: (N,) bool}`, which samples have it; None where all do. On the CPU
                nothing waits for the device. Intra terms are over the samples that have the
                modality, cross terms over those that have both. Fewer than two make a term zero,
                with a zero gradient.

        Returns:
            "loss" and one key for each term, "NAME/MODALITY" or "NAME/MODALITY-MODALITY". Terms
            carry their weights: the loss is their sum.

        Raises:
            ConfigError: if shapes or names do not fit, or there are too few modalities.
        """
        self.check_modalities(list(embeddings))
        device = next(iter(embeddings.values()))[0].device
        with torch.autocast(device.type, enabled=False):
            shares = self.terms(GlobalBatch(embeddings, present, self.dim))
            values = with_sum_over_processes(torch.stack(list(shares.values())))
            return {"loss": values.sum(), **dict(zip(shares, values.unbind(), strict=True))}

    def extra_repr(self) -> str:
        """Return what stands within the brackets of the objective's line."""
        parts = ", ".join(f"{name} {dims.stop - dims.start}" for name, dims in self.parts.items())
        return f"{self.dim} dimensions: {parts}"

    def about(self) -> dict[str, Any]:
        """Return what a file of an encoder says of its training: method, width, dimensions."""
        parts = {name: [dims.start, dims.stop] for name, dims in self.parts.items()}
        return {"name": type(self).__name__, "dim": self.dim, "parts": parts}

    @abstractmethod
    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """Return this process's share of each weighted term; shares add up over the processes."""

    def dimensions_of(self, representation: str, of: str = "") -> slice:
        """Return which dimensions of the embedding a representation has.

        Args:
            representation: "embedding" (all), the name of a part, or "block:" and a block.
            of: where the method is from, for the message.

        Raises:
            ConfigError: if there is no such part.
        """
        parts = {"embedding": slice(0, self.dim), **self.parts}
        part = find_part(representation, list(parts))
        if part is None:
            names = [f"{PREFIX}{name}" if "+" in name else name for name in parts]
            raise ConfigError(
                f"representation: {type(self).__name__}{of} has no {representation} "
                f"dimensions{self._reason_without(representation)}; choose from features, "
                f"{', '.join(names)}"
            )
        return parts[part]

    def _reason_without(self, part: str) -> str:
        """Return why a method has no dimensions of a part, where options do not tell."""
        return ""

    def check_modalities(self, names: list[str]) -> None:
        """Refuse modalities on which the method makes no sense, or whose terms share a name.

        Raises:
            ConfigError: if there are too few, or two pairs of them would have the same name.
        """
        _refuse_alike(names)
        if len(names) < self.least_modalities:
            raise ConfigError(
                f"{type(self).__name__} compares modalities: it needs at least "
                f"{self.least_modalities}, got {', '.join(names) or 'none'}; "
                "BarlowTwins, VICReg and SimCLR train on one"
            )

    def normalised_terms(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each term divided by the number of dimensions that it sums over, for the log.

        Args:
            terms: what `forward` returned.

        Returns:
            The same without "loss", detached.
        """
        return {
            key: value.detach() / self.dimensions(*key.split("/"))
            for key, value in terms.items()
            if key != "loss"
        }

    def dimensions(self, term: str, between: str = "") -> int:
        """Return how many dimensions a term sums over; 1 for a mean.

        Args:
            term: its name, "intra", "common" and so on.
            between: the modality or the pair of modalities that it is about.
        """
        if term == "intra":
            return self.dim
        part = self.parts.get(term)
        return part.stop - part.start if part else 1


def _refuse_alike(names: list[str]) -> None:
    """Refuse modalities whose pairs have the name of another pair, or of a modality.

    Terms and metrics are known by it, so that one would take the place of the other. A pair is
    known by both of its orders.
    """
    seen: dict[str, tuple[str, ...]] = {name: (name,) for name in names}
    for pair in permutations(names, 2):
        key = "-".join(pair)
        other = seen.setdefault(key, pair)
        if set(other) != set(pair):
            one, two = (" and ".join(map(repr, each)) for each in (other, pair))
            raise ConfigError(
                f"modalities: in terms and metrics, {one} would have the same name as {two}, "
                f"{key!r}; rename one of the sensors"
            )


def cross_pairs(names: list[str]) -> dict[str, tuple[Operand, Operand]]:
    """Return the pairs that are compared: the first views of each two modalities (Algorithm 1).

    A single modality is compared with itself: its two views.

    Returns:
        `{"s1-s2": (("s1", 0), ("s2", 0)), ...}`, or `{"s1": (("s1", 0), ("s1", 1))}`.
    """
    if len(names) == 1:
        return {names[0]: ((names[0], 0), (names[0], 1))}
    return {f"{a}-{b}": ((a, 0), (b, 0)) for a, b in combinations(names, 2)}


def compared_pairs(names: list[str], intra: bool) -> dict[str, tuple[Operand, Operand]]:
    """Return the pairs that are compared by a method that may also train within each modality.

    Args:
        names: the modalities.
        intra: also compare the two views of each modality.

    Returns:
        The pairs of `cross_pairs` and, with `intra`, `{"s1": (("s1", 0), ("s1", 1)), ...}`.
    """
    within = {name: ((name, 0), (name, 1)) for name in names} if intra else {}
    return {**cross_pairs(names), **within}


def list_objectives() -> dict[str, type[Objective]]:
    """Return every method by the name of its module: `{"decur": DeCUR, ...}`."""
    found = [OBJECTIVES.get(name) for name in OBJECTIVES.names()]
    named = {method.__module__.rpartition(".")[2]: method for method in found}
    return dict(sorted(named.items()))
