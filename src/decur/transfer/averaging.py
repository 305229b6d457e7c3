"""Masks of a picture at several scales and mirrored, averaged, when a model is tested."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.errors import ConfigError


@dataclass(frozen=True)
class Averaging:
    """Which versions of a picture a mask is the mean of.

    Args:
        scales: factors of height and width.
        flip: each of them mirrored, too.

    Raises:
        ConfigError: if there is no scale, or one that is not greater than 0.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        if not self.scales or any(scale <= 0 for scale in self.scales):
            raise ConfigError(
                f"test_scales: factors greater than 0, one at least, are {list(self.scales)}"
            )

    @property
    def trivial(self) -> bool:
        """Whether it is the picture as it is, alone."""
        return self.scales == (1.0,) and not self.flip

    @staticmethod
    def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
        """Height and width of a picture at one of the scales."""
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def output(
        self,
        model: nn.Module,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None,
        size: tuple[int, int],
    ) -> Tensor:
        """The mean of a model's outputs, before any softmax, as CMX is tested.

        Args:
            model: called with pictures, presence and size.
            images: `{modality: (B, C, H, W)}` in [0, 1].
            present: as the model takes it.
            size: height and width of the output.

        Returns:
            (B, outputs, *size).
        """
        outputs = []
        for scale in self.scales:
            scaled = {name: _resize(x, scale) for name, x in images.items()}
            outputs.append(model(scaled, present, size))
            if self.flip:
                mirrored = {name: x.flip(-1) for name, x in scaled.items()}
                outputs.append(model(mirrored, present, size).flip(-1))
        return torch.stack(outputs).mean(dim=0)


def _resize(x: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return x
    size = Averaging.scaled((x.shape[-2], x.shape[-1]), scale)
    return interpolate(x, size, mode="bilinear")
