"""Any module that turns pictures into vectors or feature maps, with the interface of an encoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from decur.encoders.base import Encoder
from decur.errors import ConfigError, reason_of

_SIDES = (64, 224, 32, 96, 128, 256, 512, 16, 8)  # of pictures that a module is tried on


class WrappedEncoder(Encoder):
    """A module that knows nothing of decur, as an encoder.

    What it gives is found by trying it on black pictures: vectors (B, D); a feature map
    (B, D, h, w), which is averaged to a vector; or a list of maps, of which the last is averaged.

    Args:
        module: takes pictures (B, C, H, W).
        channels: number of bands C.

    Raises:
        ConfigError: if it takes pictures of none of several sizes, or gives something else.
    """

    def __init__(self, module: nn.Module, channels: int) -> None:
        super().__init__()
        self.module = module
        maps, side = self._tried(channels)
        self.channels = [each.shape[1] for each in maps]
        self.strides = [max(1, round(side / each.shape[-1])) for each in maps]
        self.dim = self.channels[-1]

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return the module's feature maps; a vector is a map of one pixel."""
        return self._maps(self.module(x))

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) to (B, D)."""
        return self._maps(self.module(x))[-1].mean((2, 3))

    def _maps(self, given: Any) -> list[Tensor]:
        """Return what the module has given as maps (B, D, h, w)."""
        many = list(given) if isinstance(given, list | tuple) else [given]
        maps = [m[:, :, None, None] if isinstance(m, Tensor) and m.ndim == 2 else m for m in many]
        if not maps or not all(isinstance(m, Tensor) and m.ndim == 4 for m in maps):
            shown = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ConfigError(
                f"encoder: {type(self.module).__name__} gives {shown}; vectors (B, D), a map "
                "(B, D, h, w) or a list of maps are expected"
            )
        return maps

    @torch.no_grad()
    def _tried(self, channels: int) -> tuple[list[Tensor], int]:
        """Return the maps of a black picture, and the side of a picture that the module takes."""
        training, reason = self.module.training, ""
        self.module.eval()
        where = next(self.module.parameters(), torch.empty(0)).device
        try:
            for side in _SIDES:
                try:
                    given = self.module(torch.zeros(2, channels, side, side, device=where))
                except (RuntimeError, ValueError, AssertionError, TypeError) as error:
                    reason = reason or reason_of(error)
                    continue
                return self._maps(given), side
        finally:
            self.module.train(training)
        if where.type == "meta":  # shapes alone do not suffice for every module
            raise NotImplementedError(reason)
        raise ConfigError(
            f"encoder: {type(self.module).__name__} takes no pictures of {channels} bands "
            f"({reason})"
        )
