"""Integrated Gradients of the scores of an embedding, band by band of a sensor's pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.explain.model import Checkpoint, Score

if TYPE_CHECKING:
    from decur.data import Batch

Pixels = Literal["absolute", "net"]


@dataclass(frozen=True)
class Attributed:
    """What Integrated Gradients give of some pictures, for each part of the embedding.

    Args:
        net: (parts, n, C), mean attribution of the bands over pixels.
        bands: (parts, n, C), their importance.
        missed: (parts, n), by how much attributions miss the difference of the scores.
        spans: (parts, n), that difference.
        starts: (n,), the picture at which the path of each starts; its own number where it starts
            at no other.
    """

    net: NDArray[np.float32]
    bands: NDArray[np.float32]
    missed: NDArray[np.float32]
    spans: NDArray[np.float32]
    starts: NDArray[np.int64]

    @classmethod
    def nothing(cls, parts: int, bands: int) -> Attributed:
        """Return what is given of no picture."""
        none = np.empty((parts, 0, bands), np.float32)
        return cls(none, none, none[..., 0], none[..., 0], np.empty(0, np.int64))


def join_batches(batches: Sequence[Attributed]) -> Attributed:
    """Join the pictures of all batches."""
    starts, used = [], 0
    for batch in batches:
        starts.append(used + batch.starts)
        used += len(batch.starts)
    return Attributed(
        net=np.concatenate([batch.net for batch in batches], 1),
        bands=np.concatenate([batch.bands for batch in batches], 1),
        missed=np.concatenate([batch.missed for batch in batches], 1),
        spans=np.concatenate([batch.spans for batch in batches], 1),
        starts=np.concatenate(starts),
    )


class ScoredPictures:
    """Pictures of one sensor, and the scores of its embedding as a function of them.

    Where two encoders attend to each other, the other sensor's pictures stay as they are.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        batch: Batch,
        name: str,
        statistics: tuple[Tensor, Tensor],
        score: Score,
    ) -> None:
        from decur.encoders.attention.cross import is_crossing

        self.checkpoint, self.name = checkpoint, name
        self.statistics, self.score = statistics, score
        self.x = checkpoint.pictures(batch, name)  # (n, C, H, W)
        self.rows = batch["present"][name].nonzero()[:, 0]  # (n,) of the batch
        self.others: dict[str, Tensor] = {}
        if is_crossing(checkpoint.encoder(name)):
            has = batch["present"][name]
            for other in checkpoint.modalities:
                beside = batch["present"][other]
                if other != name and is_crossing(checkpoint.encoder(other)):
                    both = has & beside
                    if both.any():
                        self.x, self.rows = self.x[both[has]], both.nonzero()[:, 0]
                        self.others[other] = checkpoint.pictures(batch, other)[both[beside]]

    def scores(self, x: Tensor, *others: Tensor) -> Tensor:
        """Return the scores (n, parts) of pictures (n, C, H, W)."""
        from decur.encoders.attention import encode

        images = {self.name: x, **dict(zip(self.others, others, strict=True))}
        vector = encode(self.checkpoint.encoders, images)[self.name]
        return self.checkpoint.scores(
            self.name, vector, statistics=self.statistics, kind=self.score
        )

    def attributed(self, steps: int, baseline: float | str, pixels: Pixels) -> Attributed:
        """Attribute the score of each part to the bands, along the way from the baseline."""
        x, others = self.x, tuple(self.others.values())
        if isinstance(baseline, str) and len(x) < 2:  # there is no other
            return Attributed.nothing(len(self.checkpoint.parts), x.shape[1])
        starts = torch.arange(len(x))
        if isinstance(baseline, str):
            start, starts = self._another(x), self._another(starts)
        else:
            start = 0 * x + baseline
        # Half a batch away and back: each path is that of another picture, too, the other way
        # round, and the nodes lie alike. Both have its gradients, and half the work is saved.
        shared = isinstance(baseline, str) and len(x) % 2 == 0 and not others
        distinct = len(x) // 2 if shared else len(x)
        slopes = self._mean_slopes(x[:distinct], start[:distinct], others, steps)
        attribution = (x - start) * torch.cat([slopes] * (2 if shared else 1), 1)
        with torch.no_grad():
            after = self._another(self.own) if shared else self.scores(start, *others)
        span = (self.own - after).T  # (parts, n)
        net = attribution.mean((3, 4))  # (parts, n, C)
        bands = _shares(attribution.abs().mean((3, 4)) if pixels == "absolute" else net.abs())
        return Attributed(
            net=_array(net),
            bands=_array(bands),
            missed=_array((attribution.sum((2, 3, 4)) - span).abs()),
            spans=_array(span.abs()),
            starts=starts.numpy(),
        )

    def _mean_slopes(
        self, x: Tensor, start: Tensor, others: tuple[Tensor, ...], steps: int
    ) -> Tensor:
        """Return the mean gradient of each part's score on the way: (parts, n, C, H, W).

        That is Integrated Gradients (Sundararajan et al. 2017) but for the factor x - start, by
        the rule of Gauss and Legendre. captum would send the same pictures through the encoder
        once for each part.
        """
        nodes, weights = np.polynomial.legendre.leggauss(steps)
        total = torch.zeros(len(self.checkpoint.parts), *x.shape, dtype=x.dtype, device=x.device)
        for node, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            at = (start + float(node) * (x - start)).requires_grad_()
            scores = self.scores(at, *others).sum(0)  # (parts,)
            for part, score in enumerate(scores):
                (slope,) = torch.autograd.grad(score, at, retain_graph=part + 1 < len(scores))
                total[part] += float(weight) * slope
        return total

    @torch.no_grad()
    def exchanged(self) -> NDArray[np.float32]:
        """Return the importance (parts, m, C) of each band, taken from another sample."""
        others, another = tuple(self.others.values()), self._another(self.x)
        changes = []
        for band in range(self.x.shape[1]):
            x = self.x.clone()
            x[:, band] = another[:, band]
            changes.append((self.scores(x, *others) - self.own).abs())
        change = torch.stack(changes, 2).transpose(0, 1)  # (parts, n, C)
        if len(self.x) < 2:
            change = change[:, :0]  # there is no other
        return _array(_shares(change))

    @cached_property
    @torch.no_grad()
    def own(self) -> Tensor:
        """Return the scores of the pictures as they are: (n, parts)."""
        return self.scores(self.x, *self.others.values())

    @staticmethod
    def _another(rows: Tensor) -> Tensor:
        """Return for each picture the row of another, half the batch away, while there is one."""
        return rows.roll(max(1, len(rows) // 2), 0)


def _array(values: Tensor) -> NDArray[np.float32]:
    return values.float().cpu().numpy()


def _shares(bands: Tensor) -> Tensor:
    return bands / bands.sum(-1, keepdim=True).clamp_min(torch.finfo(bands.dtype).tiny)
