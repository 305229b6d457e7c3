"""CBAM: which channels matter, then which places."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from decur.encoders.attention.base import ATTENTIONS, Stage


class CBAM(nn.Module):
    """Convolutional block attention module (Woo et al. 2018, equations 1 to 3).

    The map is weighted by channel, by a perceptron that the mean and the maximum over the places
    share, and then by place, by a 7 x 7 convolution of the mean and the maximum over the channels.

    Args:
        channels: C of the map.
        reduction: C by the perceptron's width.

    Shapes:
        (B, C, H, W) to (B, C, H, W).
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        width = max(1, channels // reduction)
        self.channel = nn.Sequential(
            nn.Linear(channels, width), nn.ReLU(inplace=True), nn.Linear(width, channels)
        )
        self.place = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Weight the map."""
        weight = self.channel(x.mean((2, 3))) + self.channel(x.amax((2, 3)))  # (B, C)
        x = x * weight.sigmoid()[:, :, None, None]
        summary = torch.stack((x.mean(1), x.amax(1)), 1)  # (B, 2, H, W)
        weighted: Tensor = x * self.place(summary).sigmoid()
        return weighted


@ATTENTIONS.register("cbam")
def _cbam(stage: Stage) -> CBAM:
    return CBAM(stage.channels)
