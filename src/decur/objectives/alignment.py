"""Measures of embeddings and features for monitors, of this process's rows, without gradients."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import torch
from torch import Tensor

from decur.objectives.batch import Embeddings, GlobalBatch, Present
from decur.objectives.redundancy import standardise


@torch.no_grad()
def alignment(
    embeddings: Embeddings, parts: Mapping[str, slice], *, present: Present | None = None
) -> dict[str, Tensor]:
    """Measure the correlations that DeCUR drives to 1 and to 0, whatever the objective.

    Under `torch.distributed` each process sees its own rows: average over processes to log.

    Args:
        embeddings: `{modality: (view 1, view 2)}`, each (N, K).
        parts: dimensions by name, as `Objective.parts`.
        present: `{modality: (N,) bool}`; None where every sample has every modality.

    Returns:
        Float32 scalars: "diagonal/PART/A-B", the mean diagonal of the correlation (Eq. 1) between
        the first views of two modalities; "offdiag_rms/A-B", the root mean square of all that is
        off its diagonal, and "offdiag_chance/A-B", that of embeddings without any correlation, one
        over the root of the samples that have both less one; "diagonal/intra/A", the mean diagonal
        between a modality's two views. NaN where fewer than two samples can tell.

    Raises:
        ConfigError: if shapes or names do not fit.
    """
    dim = next(iter(embeddings.values()))[0].shape[-1] if embeddings else 0
    batch = GlobalBatch(embeddings, present, dim, distributed=False)
    some = next(iter(embeddings.values()))[0]
    unknown = torch.full((), torch.nan, device=some.device)
    found: dict[str, Tensor] = {}
    with torch.autocast(some.device.type, enabled=False):
        for name in batch.names:
            samples = batch.samples(name)
            diagonal = unknown
            if samples.size > 1:
                a, b = (standardise(batch.take((name, view), samples)) for view in (0, 1))  # (N, K)
                diagonal = (a * b).sum(0) / samples.size  # (K,)
            found[f"diagonal/intra/{name}"] = diagonal.mean()
        for name_a, name_b in combinations(batch.names, 2):
            samples = batch.samples(name_a, name_b)
            diagonal, rms, by_chance = unknown.expand(dim), unknown, unknown
            if samples.size > 1:
                a, b = (standardise(batch.take((name, 0), samples)) for name in (name_a, name_b))
                diagonal = (a * b).sum(0) / samples.size  # (K,)
                squares = _sum_of_squares(a, b) - diagonal.square().sum()
                rms = (squares / max(dim * (dim - 1), 1)).clamp_min(0).sqrt()
                by_chance = torch.full_like(rms, (samples.size - 1) ** -0.5)
            for part, dims in parts.items():
                found[f"diagonal/{part}/{name_a}-{name_b}"] = diagonal[dims].mean()
            found[f"offdiag_rms/{name_a}-{name_b}"] = rms
            found[f"offdiag_chance/{name_a}-{name_b}"] = by_chance
    return found


def _sum_of_squares(a: Tensor, b: Tensor) -> Tensor:
    """Return sum_ij C_ij^2 of C = A^T B / N, by C or by Gram matrices; A, B: (N, K)."""
    n, k = a.shape
    if 2 * n < k:
        return ((a @ a.T) * (b @ b.T)).sum() / n**2
    return (a.T @ b / n).square().sum()


@torch.no_grad()
def effective_rank(x: Tensor) -> Tensor:
    """Return how many directions the rows of x fill (RankMe, Garrido et al. 2023, Eq. 1).

    The exponential of the entropy of the normalised singular values, here of the centred matrix:
    from 1 (a line, or a single point: collapsed) to min(N - 1, D). In float64, by the eigenvalues
    of the smaller Gram matrix.

    Args:
        x: (N, D) embeddings or features.

    Returns:
        Float64 scalar, at least 1; NaN if x is not finite.
    """
    x = x.cpu() if x.device.type == "mps" else x  # which has no float64
    x = x.double()
    x = x - x.mean(0)  # (N, D)
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    if not gram.isfinite().all():
        return gram.new_full((), torch.nan)
    values = torch.linalg.eigvalsh(gram).clamp_min(0).sqrt()  # (min(N, D),)
    shares = values / values.sum().clamp_min(torch.finfo(torch.float64).tiny)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


@torch.no_grad()
def spread(x: Tensor) -> Tensor:
    """Return how much x varies over its rows: 0 for constant features, about 1 for centred.

    Args:
        x: (N, D) embeddings or features.

    Returns:
        Float32 scalar: the mean over dimensions of the standard deviation over the batch, divided
        by the root mean square of x.
    """
    x = x.float()
    rms = x.square().mean().sqrt()
    return x.std(0, correction=0).mean() / rms.clamp_min(torch.finfo(torch.float32).tiny)
