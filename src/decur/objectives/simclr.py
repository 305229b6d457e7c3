"""SimCLR's loss, across modalities or between the two views of one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, compared_pairs
from decur.objectives.batch import GlobalBatch, Operand


@OBJECTIVES.register("SimCLR")
class SimCLR(Objective):
    """NT-Xent (Chen et al. 2020) across modalities.

    The 2N embeddings of a pair of modalities make one set. Each is an anchor: it should be most
    similar to the other embedding of its sample among all 2N - 1 others. Unlike in `CLIP`, the
    negatives come from both modalities, its own included (2N - 2 of them), and the temperature is
    fixed. With one modality, the pair is its two views, which is the original method.

    With `intra`, the two views of each modality are contrasted as well: cross + self InfoNCE, the
    strong simple rival of methods that separate what is shared from what is not (Dufumier et al.
    2025, CoMM, compare with it on Trifeature).

    Terms: "infonce/A-B" and, with `intra`, "infonce/A", each the mean over its 2N anchors.

    Args:
        dim: Width of the embeddings (K in the paper).
        temperature: Temperature by which cosine similarities are divided.
        intra: Contrast the two views of each modality, too.

    Raises:
        ConfigError: if a value is out of range.
    """

    needs_whole_batch = (
        "SimCLR takes its negatives from the whole batch, and small batches hold fewer of them"
    )

    def __init__(self, dim: int = 8192, temperature: float = 0.5, *, intra: bool = False) -> None:
        super().__init__(dim)
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0; is {temperature}")
        self.temperature = temperature
        self.intra = intra

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        pairs = compared_pairs(batch.names, self.intra)
        batch.gather(operand for operands in pairs.values() for operand in operands)
        return {
            f"infonce/{pair}": self._contrast(batch, *operands) for pair, operands in pairs.items()
        }

    def _contrast(self, batch: GlobalBatch, a: Operand, b: Operand) -> Tensor:
        samples = batch.samples(a[0], b[0])
        if samples.size < 2:
            return batch.nothing(a, b)
        za, zb = (F.normalize(batch.take(operand, samples)) for operand in (a, b))  # (N, K)
        everything = torch.cat([za, zb])  # (2N, K)
        anchors = torch.cat([za[samples.own], zb[samples.own]])  # (2n, K)
        rows = torch.arange(samples.own.start, samples.own.stop, device=za.device)
        itself = torch.cat([rows, rows + samples.size])  # (2n,)
        partner = torch.cat([rows + samples.size, rows])  # (2n,)
        logits = anchors @ everything.T / self.temperature  # (2n, 2N)
        logits = logits.scatter(1, itself[:, None], -torch.inf)
        return F.cross_entropy(logits, partner, reduction="sum") / (2 * samples.size)
