"""An encoder for pictures whose bands or values differ from those it was trained on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from decur.encoders.base import Encoder

ADAPTED = "adapted"


class AdaptedEncoder(Encoder):
    """An encoder whose pictures are reordered and rescaled to the bands that it was trained on.

    Pictures become `(band - mean) / std` before the encoder inside; a band that they lack is 0
    there.

    Args:
        encoder: what takes one channel for each of `rows`.
        rows: for each channel the band of the pictures, None for one they lack.
        mean: of each channel, in the values of the pictures.
        std: of each channel.
    """

    rows: Tensor
    known: Tensor
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: Encoder,
        rows: Sequence[int | None],
        *,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.encoder, self.name = encoder, ADAPTED
        self.options = {
            "encoder": encoder.name,
            "options": encoder.options,
            "rows": list(rows),
            "mean": list(mean),
            "std": list(std),
        }
        self.channels, self.strides, self.dim = encoder.channels, encoder.strides, encoder.dim
        known = [row is not None for row in rows]
        self.complete = all(known)
        shaped = [torch.tensor(values)[:, None, None] for values in (known, mean, std)]
        self.register_buffer("rows", torch.tensor([row or 0 for row in rows]), persistent=False)
        for name, values in zip(("known", "mean", "std"), shaped, strict=True):
            self.register_buffer(name, values, persistent=False)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps of the encoder inside."""
        return self.encoder.forward_features(self._adapt(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the vector of the encoder inside: (B, bands, H, W) to (B, D)."""
        vector: Tensor = self.encoder(self._adapt(x))
        return vector

    def _adapt(self, x: Tensor) -> Tensor:
        x = (x[:, self.rows] - self.mean) / self.std  # (B, channels, H, W)
        return x if self.complete else x.where(self.known, 0)
