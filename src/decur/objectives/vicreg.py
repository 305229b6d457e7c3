"""VICReg: variance, invariance, covariance."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, compared_pairs
from decur.objectives.batch import GlobalBatch, Operand, Selection
from decur.objectives.redundancy import gram_matrices


@OBJECTIVES.register("VICReg")
class VICReg(Objective):
    """VICReg (Bardes et al. 2021), across modalities or between the two views of one.

    For each pair of embeddings: their mean squared difference ("invariance/A-B"), and for either of
    them ("variance/A", "covariance/A") how far the standard deviation of a dimension falls short of
    1, half its mean over dimensions, and the sum of the squared covariances of different dimensions
    divided by K. Summed over pairs: with M modalities, the terms of each count M - 1 times. The
    embeddings are not standardised.

    With two or more modalities the pairs are the first views of each two; with one, its two views,
    which is the original method, and the terms "variance/A" and "covariance/A" are the sums of
    those of both views. With `intra`, the two views of each modality are one more pair.

    Args:
        dim: Width of the embeddings (K in the paper).
        invariance: Weight of the invariance term.
        variance: Weight of the variance term.
        covariance: Weight of the covariance term.
        intra: Compare the two views of each modality, too.

    Raises:
        ConfigError: if a value is out of range.
    """

    needs_whole_batch = (
        "VICReg takes variances and covariances over the whole batch, and the gradients of small "
        "batches do not add up to that of a large one"
    )

    def __init__(
        self,
        dim: int = 8192,
        invariance: float = 25.0,
        *,
        variance: float = 25.0,
        covariance: float = 1.0,
        intra: bool = False,
    ) -> None:
        super().__init__(dim)
        weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in weights.items():
            if not weight >= 0:
                raise ConfigError(f"{name} is a weight, at least 0; is {weight}")
        self.weights = weights
        self.intra = intra

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        pairs = compared_pairs(batch.names, self.intra)
        batch.gather(operand for operands in pairs.values() for operand in operands)
        terms = {
            f"invariance/{pair}": self._invariance(batch, *operands)
            for pair, operands in pairs.items()
        }
        counts = Counter(operand for operands in pairs.values() for operand in operands)
        for name in batch.names:
            samples = batch.samples(name)
            each = [
                counts[operand] * self._spread(batch, operand, samples)
                for operand in ((name, 0), (name, 1))
                if operand in counts
            ]
            variance, covariance = torch.stack(each).sum(0)
            terms[f"variance/{name}"] = self.weights["variance"] * variance
            terms[f"covariance/{name}"] = self.weights["covariance"] * covariance
        return terms

    def _invariance(self, batch: GlobalBatch, a: Operand, b: Operand) -> Tensor:
        samples = batch.samples(a[0], b[0])
        if samples.size < 2:
            return batch.nothing(a, b)
        za, zb = (batch.take(operand, samples)[samples.own] for operand in (a, b))  # (n, K)
        squares = F.mse_loss(za, zb, reduction="sum")
        return self.weights["invariance"] * squares / (samples.size * self.dim)

    def _spread(self, batch: GlobalBatch, operand: Operand, samples: Selection) -> Tensor:
        """Return this process's share of the unweighted variance and covariance terms: (2,)."""
        if samples.size < 2:
            return batch.nothing(operand).expand(2)
        z = batch.take(operand, samples)  # (N, K)
        z = z - z.mean(0)
        own = batch.own_part(slice(0, self.dim))
        variances = z.square().sum(0)[own] / (samples.size - 1)  # (k,)
        shortfall = F.relu(1 - torch.sqrt(variances + 1e-4)).sum() / (2 * self.dim)
        # sum_ij Cov_ij^2 = |Z^T Z|^2 = |Z Z^T|^2: the smaller matrix of the two
        if 4 * samples.size < 3 * self.dim:  # products of size N x N x K twice, N x K x K thrice
            (gram,) = gram_matrices(z, (slice(0, self.dim),), own=samples.own)  # (n, N)
            squares = gram.square().sum() / (samples.size - 1) ** 2 - variances.square().sum()
        else:
            matrix = z[:, own].T @ z / (samples.size - 1)  # (k, K)
            matrix.diagonal(own.start).zero_()
            squares = matrix.square().sum()
        return torch.stack([shortfall, squares / self.dim])
