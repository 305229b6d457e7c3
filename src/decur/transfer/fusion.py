"""What every model of several encoders is: an encoder for each sensor, and what joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from decur.encoders import Encoder
from decur.transfer.survey import MAPS


class Fusion(nn.Module, ABC):
    """One encoder for each sensor, and what joins them.

    Args:
        encoders: `{modality: encoder}`, each with its `modality`.
        outputs: length of the output, classes or 1.
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(encoders)
        self.outputs = outputs
        self.frozen = False

    def encoder(self, modality: str) -> Encoder:
        """The encoder of one sensor."""
        found = self.encoders[modality]
        assert isinstance(found, Encoder)
        return found

    def freeze(self) -> None:
        """Keep the encoders as they are: no gradient, eval mode, batch statistics fixed."""
        self.frozen = True
        self.encoders.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Fusion:
        """Training or eval mode; frozen encoders stay in eval mode."""
        super().train(mode)
        if self.frozen:
            self.encoders.eval()
        return self

    @abstractmethod
    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """Pictures to the output.

        Args:
            images: `{modality: (B, C, H, W)}` in [0, 1].
            present: `{modality: (B,) bool}`, where some samples lack a sensor. The features of an
                absent one are zeros.
            size: height and width of a map to give; the first picture's by default.

        Returns:
            (B, outputs), or (B, outputs, *size) for maps.
        """

    def _encode(self, name: str, x: Tensor, present: Tensor | None, maps: bool) -> list[Tensor]:
        """Vector or feature maps of one sensor, zeros where absent; none if it is nowhere there."""
        encoder = self.encoder(name)
        there = slice(None) if present is None or bool(present.all()) else present.to(x.device)
        if isinstance(there, Tensor):
            count = int(there.sum())
            if count == 0 or (count == 1 and encoder.training):  # batch statistics need two
                return []
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = encoder.forward_features(x[there])[-MAPS:] if maps else [encoder(x[there])]
        if isinstance(there, slice):
            return found
        rows = there.nonzero()[:, 0]
        return [f.new_zeros(len(x), *f.shape[1:]).index_copy(0, rows, f) for f in found]
