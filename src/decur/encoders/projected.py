"""An encoder with its projector on top, as an encoder: vectors where objectives see them."""

from __future__ import annotations

from torch import Tensor, nn

from decur.encoders.base import Encoder
from decur.encoders.projector import Projector

PROJECTED = "projected"


class ProjectedEncoder(Encoder):
    """An encoder whose vector is the embedding, or some dimensions of it.

    The feature maps stay those of the encoder inside.

    Args:
        encoder: what the projector was trained on; its sensor is taken over.
        projector: from its vector to the embedding, K wide.
        part: first dimension of the embedding that is given, and the one after the last; all by
            default.
    """

    def __init__(
        self, encoder: Encoder, projector: Projector, part: tuple[int, int] | None = None
    ) -> None:
        super().__init__()
        self.encoder, self.projector = encoder, projector
        start, stop = part or (0, projector.dim)
        self.part = slice(start, stop)
        self.name = PROJECTED
        self.options = {
            "encoder": encoder.name,
            "options": encoder.options,
            "width": projector.dim,
            "layers": sum(isinstance(layer, nn.Linear) for layer in projector),
            "part": [start, stop],
        }
        self.channels, self.strides, self.dim = encoder.channels, encoder.strides, stop - start
        self.modality = encoder.modality

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps of the encoder inside."""
        return self.encoder.forward_features(x)

    def forward(self, x: Tensor) -> Tensor:
        """The part of the embedding: (B, C, H, W) in [0, 1] to (B, stop - start)."""
        return self.project(self.encoder(x))

    def project(self, h: Tensor) -> Tensor:
        """The same from the vector of the encoder inside, (B, D)."""
        return self.projector(h)[:, self.part]
