"""Barlow Twins, across modalities or between the two views of one."""

from __future__ import annotations

from torch import Tensor

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, cross_pairs
from decur.objectives.batch import GlobalBatch
from decur.objectives.redundancy import Correlation, redundancy


@OBJECTIVES.register("BarlowTwins")
class BarlowTwins(Objective):
    """Barlow Twins (Zbontar et al. 2021): the correlation matrix goes to the identity.

    With two or more modalities between the first views of each two ("common/A-B"), summed over
    pairs; with one between its two views ("intra/A"), which is the original method.

    Args:
        dim: Width of the embeddings (K in the paper).
        lambda_: Weight of the off-diagonal; 0.0051 as published.

    Raises:
        ConfigError: if a value is out of range.
    """

    needs_whole_batch = (
        "Barlow Twins correlates dimensions over the whole batch, and the gradients of small "
        "batches do not add up to that of a large one"
    )

    def __init__(self, dim: int = 8192, lambda_: float = 0.0051) -> None:
        super().__init__(dim)
        if not lambda_ >= 0:
            raise ConfigError(f"lambda_ is a weight, at least 0; is {lambda_}")
        self.lambda_ = lambda_

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        term = "common" if len(batch.names) > 1 else "intra"
        correlations = [
            Correlation(f"{term}/{pair}", *operands, (slice(0, self.dim),), 1, self.lambda_)
            for pair, operands in cross_pairs(batch.names).items()
        ]
        return redundancy(batch, correlations)
