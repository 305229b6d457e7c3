"""CLIP's loss across modalities."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from decur.errors import ConfigError
from decur.objectives.base import OBJECTIVES, Objective, compared_pairs
from decur.objectives.batch import GlobalBatch, Operand

LARGEST_SCALE = 100.0  # Radford et al. 2021, section 2.5


@OBJECTIVES.register("CLIP")
class CLIP(Objective):
    """Symmetric InfoNCE (Radford et al. 2021) across modalities.

    Each embedding of one modality should be most similar to that of the same sample in the other,
    among the N of the other. Unlike in `SimCLR`, the negatives come from the other modality only
    (N - 1 of them), and the temperature is learned, one for all pairs. Needs two modalities.

    The authors' code of the paper's tables has it simpler: not `symmetric`, not `learned`, at a
    temperature of 1.

    With `intra`, the two views of each modality are contrasted in the same way, at the same
    temperature.

    Terms: "infonce/A-B" and, with `intra`, "infonce/A", each the mean of both directions, or one.

    Args:
        dim: Width of the embeddings (K in the paper).
        temperature: Temperature with which training starts. The parameter `log_scale` is the
            logarithm of its inverse, which never exceeds 100.
        intra: Contrast the two views of each modality, too.
        symmetric: Let the embeddings of both modalities be anchors; False: those of the first.
        learned: Learn the temperature; False: it stays.

    Raises:
        ConfigError: if a value is out of range.
    """

    needs_whole_batch = (
        "CLIP takes its negatives from the whole batch, and small batches hold fewer of them"
    )
    least_modalities = 2

    log_scale: Tensor

    def __init__(
        self,
        dim: int = 8192,
        temperature: float = 0.07,
        *,
        intra: bool = False,
        symmetric: bool = True,
        learned: bool = True,
    ) -> None:
        super().__init__(dim)
        if not temperature >= 1 / LARGEST_SCALE:
            raise ConfigError(
                f"temperature must be at least {1 / LARGEST_SCALE}, where CLIP clamps it; "
                f"is {temperature}"
            )
        self.intra, self.symmetric = intra, symmetric
        log_scale = torch.tensor(-math.log(temperature))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def terms(self, batch: GlobalBatch) -> dict[str, Tensor]:
        """See `Objective.terms`."""
        with torch.no_grad():  # the parameter itself: a clamp in the graph would end its gradient
            self.log_scale.clamp_(max=math.log(LARGEST_SCALE))
        pairs = compared_pairs(batch.names, self.intra)
        batch.gather(operand for operands in pairs.values() for operand in operands)
        return {
            f"infonce/{pair}": self._contrast(batch, *operands) for pair, operands in pairs.items()
        }

    def _contrast(self, batch: GlobalBatch, a: Operand, b: Operand) -> Tensor:
        samples = batch.samples(a[0], b[0])
        if samples.size < 2:
            return batch.nothing(a, b) + 0 * self.log_scale
        za, zb = (F.normalize(batch.take(operand, samples)) for operand in (a, b))  # (N, K)
        scale = self.log_scale.float().exp()
        partner = torch.arange(samples.own.start, samples.own.stop, device=za.device)  # (n,)
        directions = ((za, zb), (zb, za)) if self.symmetric else ((za, zb),)
        losses = [
            F.cross_entropy(scale * anchors[samples.own] @ others.T, partner, reduction="sum")
            for anchors, others in directions  # logits: (n, N)
        ]
        return torch.stack(losses).sum() / (len(losses) * samples.size)
