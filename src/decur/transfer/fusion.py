"""What every model of several encoders is: an encoder for each sensor, and what joins them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from decur.devices import send
from decur.encoders import Encoder
from decur.encoders.attention import encode, encode_maps
from decur.modality import Modality
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

    def modality(self, name: str) -> Modality:
        """How the pictures of one sensor are scaled for its encoder."""
        found = self.encoder(name).modality
        assert found is not None  # gather_encoders gives none without
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

    def _encode(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None, maps: bool
    ) -> dict[str, list[Tensor]]:
        """Vector or last feature maps of each sensor that is somewhere there, zeros where not."""
        rows: dict[str, Tensor] = {}  # of sensors that some samples lack
        given: dict[str, Tensor] = {}
        for name in self.encoders:
            has = present[name].cpu() if present else None
            if has is None or bool(has.all()):
                given[name] = images[name]
                continue
            count = int(has.sum())
            if count == 0 or (count == 1 and self.encoder(name).training):
                continue  # batch statistics need two
            rows[name] = send(has.nonzero()[:, 0], images[name].device)
            given[name] = images[name][rows[name]]
        there = {name: present[name].cpu() for name in given} if present else None
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            found = (
                {n: m[-MAPS:] for n, m in encode_maps(self.encoders, given, there).items()}
                if maps
                else {n: [v] for n, v in encode(self.encoders, given, there).items()}
            )
        for name, at in rows.items():
            count = len(images[name])
            found[name] = [
                f.new_zeros(count, *f.shape[1:]).index_copy(0, at, f) for f in found[name]
            ]
        return found
