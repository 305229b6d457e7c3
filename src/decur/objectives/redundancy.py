"""Redundancy reduction: correlation matrices brought to the identity or to zero.

For column-standardised A and B, both (N, K), and C = A^T B / N,

    sum_ij C_ij^2 = <A A^T, B B^T> / N^2,

so that with fewer samples than dimensions no K x K matrix is needed. The N x N Gram matrix of an
operand serves every term in which it occurs, those of disjoint sets of columns add up to that of
their union, and the backward pass is one product for each, however many terms there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.objectives.batch import GlobalBatch, Operand, Selection


@dataclass(frozen=True)
class Correlation:
    """One correlation matrix C of a loss (Eq. 2 to 5), and where it should go.

    sum_i (target - C_ii)^2 + weight * sum_i sum_{j != i} C_ij^2

    Args:
        key: name of the term.
        a: modality and view of its rows.
        b: modality and view of its columns.
        dims: dimensions of both, as slices in rising order.
        target: of its diagonal; 1 or 0.
        weight: lambda, of its off-diagonal.
    """

    key: str
    a: Operand
    b: Operand
    dims: tuple[slice, ...]
    target: float
    weight: float

    @property
    def width(self) -> int:
        """Number of dimensions."""
        return sum(part.stop - part.start for part in self.dims)

    def take(self, z: Tensor) -> Tensor:
        """Return these dimensions of the last axis, without a copy where they are one slice."""
        parts = [z[..., part] for part in self.dims]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def redundancy(batch: GlobalBatch, correlations: list[Correlation]) -> dict[str, Tensor]:
    """Return this process's share of each term, by N x N or K x K matrices, the cheaper ones.

    Args:
        batch: embeddings.
        correlations: the terms.

    Returns:
        `{key: scalar}`.
    """
    terms = {}
    batch.gather(operand for c in correlations for operand in (c.a, c.b))
    workspace = _Workspace(batch, correlations)
    by_gram = workspace.gram_is_cheaper()
    for c in correlations:
        samples = batch.samples(c.a[0], c.b[0])
        if samples.size < 2:
            terms[c.key] = batch.nothing(c.a, c.b)
            continue
        # By itself in either form: near the optimum, the rounding of a matrix product would be
        # felt in the difference to the target.
        own = batch.own_part(slice(0, c.width))
        diagonal = c.take(workspace.diagonal(c.a, c.b, samples))[own]  # (k,)
        if by_gram:
            off_diagonal = workspace.squares_by_gram(c, samples) - diagonal.square().sum()
        else:
            off_diagonal = workspace.off_diagonal_squares(c, samples)
        terms[c.key] = (c.target - diagonal).square().sum() + c.weight * off_diagonal
    return terms


def standardise(z: Tensor) -> Tensor:
    """Standardise (N, K) to zero mean and unit variance: batch normalisation without weights."""
    return F.batch_norm(z, None, None, training=True, eps=1e-5)


class Grams(torch.autograd.Function):
    """Gram matrices of some columns of Z: own rows times all rows.

    The backward pass holds for losses that treat rows and columns alike, as all here do: the
    gradient with respect to G is then symmetric, that with respect to Z is 2 dG Z, and each
    process finds that of its own rows from its own rows of dG.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, parts: tuple[slice, ...], own: slice) -> tuple[Tensor, ...]:
        """Return one (n, N) for each part of (N, K)."""
        ctx.save_for_backward(z)
        ctx.parts, ctx.own = parts, own
        return tuple(z[own, part] @ z[:, part].T for part in parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Compute one product for each part."""
        (z,) = ctx.saved_tensors
        out = torch.zeros_like(z)  # (N, K)
        with torch.autocast(z.device.type, enabled=False):
            for part, grad in zip(ctx.parts, grads, strict=True):
                out[ctx.own, part] = (2 * grad) @ z[:, part]
        return out, None, None


def gram_matrices(z: Tensor, parts: tuple[slice, ...], *, own: slice) -> tuple[Tensor, ...]:
    """Return the Gram matrices of some columns: own rows times all rows, with their gradient.

    Args:
        z: (N, K) standardised or centred embeddings of all processes.
        parts: columns of each matrix.
        own: rows of this process, n of them.

    Returns:
        One (n, N) for each part.
    """
    apply: Any = Grams.apply  # torch's has no types
    grams: tuple[Tensor, ...] = apply(z, parts, own)
    return grams


class _Workspace:
    """Intermediate results that several correlations share, each computed once."""

    def __init__(self, batch: GlobalBatch, correlations: list[Correlation]) -> None:
        self.batch = batch
        self._standardised: dict[tuple[Operand, Selection], Tensor] = {}
        self._grams: dict[tuple[Operand, Selection], dict[tuple[int, int], Tensor]] = {}
        self._diagonals: dict[tuple[Operand, Operand], Tensor] = {}
        # Where the parts of an operand begin and end: the columns between two neighbouring edges
        # get one Gram matrix.
        self._edges: dict[tuple[Operand, Selection], set[int]] = {}
        self._direct_cost = 0
        for c in correlations:
            samples = batch.samples(c.a[0], c.b[0])
            for operand in (c.a, c.b):
                edges = self._edges.setdefault((operand, samples), set())
                edges.update(edge for part in c.dims for edge in (part.start, part.stop))
            self._direct_cost += 3 * samples.size * c.width**2  # one product forward, two backward

    def gram_is_cheaper(self) -> bool:
        """Count multiplications: N x N once for each operand, or K x K for each term."""
        gram_cost = sum(
            2 * samples.size**2 * (max(edges) - min(edges))  # one product forward, one backward
            for (_, samples), edges in self._edges.items()
        )
        return gram_cost < self._direct_cost

    def diagonal(self, a: Operand, b: Operand, samples: Selection) -> Tensor:
        """Return the diagonal of C for all dimensions, which the parts of a pair share: (K,)."""
        if (a, b) not in self._diagonals:
            product = self._standard(a, samples) * self._standard(b, samples)  # (N, K)
            self._diagonals[a, b] = product.sum(0) / samples.size
        return self._diagonals[a, b]

    def squares_by_gram(self, c: Correlation, samples: Selection) -> Tensor:
        """Return the own share of sum_ij C_ij^2, from own rows of the N x N matrices."""
        gram_a = self._gram(c.a, samples, c.dims)  # (n, N)
        gram_b = self._gram(c.b, samples, c.dims)  # (n, N)
        return (gram_a * gram_b).sum() / samples.size**2

    def off_diagonal_squares(self, c: Correlation, samples: Selection) -> Tensor:
        """Return the own share of sum_{i != j} C_ij^2, from own rows of the K x K matrix."""
        rows = self.batch.own_part(slice(0, c.width))
        a, b = (c.take(self._standard(operand, samples)) for operand in (c.a, c.b))  # (N, K)
        matrix = a[:, rows].T @ b / samples.size  # (k, K)
        matrix.diagonal(rows.start).zero_()
        return matrix.square().sum()

    def _standard(self, operand: Operand, samples: Selection) -> Tensor:
        key = operand, samples
        if key not in self._standardised:
            self._standardised[key] = standardise(self.batch.take(operand, samples))
        return self._standardised[key]

    def _gram(self, operand: Operand, samples: Selection, dims: tuple[slice, ...]) -> Tensor:
        """Return own rows of the Gram matrix of some columns: (n, N)."""
        key = operand, samples
        if key not in self._grams:
            pieces = list(pairwise(sorted(self._edges[key])))
            parts = tuple(slice(*piece) for piece in pieces)
            grams = gram_matrices(self._standard(operand, samples), parts, own=samples.own)
            self._grams[key] = dict(zip(pieces, grams, strict=True))
        inside = [
            gram
            for (start, stop), gram in self._grams[key].items()
            if any(part.start <= start and stop <= part.stop for part in dims)
        ]
        return torch.stack(inside).sum(0) if len(inside) > 1 else inside[0]
