"""What an attention is made for, and where each is found by its name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Stage:
    """The stage of an encoder that an attention comes after.

    Args:
        name: of the stage, as the encoder's own code calls it ("layer3").
        channels: of its feature map.
        size: height and width of the map for pictures of 224 px.
        later: number of stages after it.
    """

    name: str
    channels: int
    size: tuple[int, int]
    later: int


Builder = Callable[[Stage], nn.Module]

ATTENTIONS: dict[str, Builder] = {}


def attention(name: str) -> Callable[[Builder], Builder]:
    """Register what builds an attention, (B, C, H, W) to the same shape, under a name."""

    def register(builder: Builder) -> Builder:
        ATTENTIONS[name] = builder
        return builder

    return register
