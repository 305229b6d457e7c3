"""Layers of CMX, which join two Mix Transformers after every stage (Zhang et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

WIDTH = 512  # of the decoder
ATTENTION_HEADS = (
    1,
    2,
    5,
    8,
)  # after each stage as many as the stage itself has
SHARE = 0.5  # lambda_C and lambda_S: how much of the other sensor is added


class FeatureRectification(nn.Module):
    """Each sensor's map, corrected by the other's (equations 1 to 6).

    Weights for each channel, from the means and maxima over all places of both maps, and for each
    place, from the channels of both: `a + (channel weights + place weights) / 2 * b`, and alike
    for b.

    Args:
        channels: C, of either map.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.of_channels = nn.Sequential(
            nn.Linear(4 * channels, 4 * channels),
            nn.ReLU(),
            nn.Linear(4 * channels, 2 * channels),
            nn.Sigmoid(),
        )
        self.of_places = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 1),
            nn.Sigmoid(),
        )
        self.apply(_initialise)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, C, H, W) of either sensor corrected; the shapes stay."""
        both = torch.cat([a, b], dim=1)  # (B, 2C, H, W)
        summary = torch.cat([both.mean((2, 3)), both.amax((2, 3))], dim=1)  # (B, 4C)
        channels_a, channels_b = self.of_channels(summary)[..., None, None].chunk(2, dim=1)
        places_a, places_b = self.of_places(both).chunk(2, dim=1)  # (B, 1, H, W) each
        return (
            a + SHARE * (channels_b + places_b) * b,
            b + SHARE * (channels_a + places_a) * a,
        )


class FeatureFusion(nn.Module):
    """Two maps to one: each attends to a summary of the other, then both are mixed.

    The summary of a sensor is one matrix for each head, keys by values (equations 7 and 8), so
    that the cost grows with the places and not with their square. As the authors' code has it and
    the paper does not say, it is divided by the square root of a head's channels, its softmax is
    over the keys, and the first embeddings end in a ReLU.

    Args:
        channels: C, of either map and of the result.
        heads: of the attention; a divisor of C.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.embed = _pair(lambda: nn.Linear(channels, 2 * channels))
        self.keys_values = _pair(lambda: nn.Linear(channels, 2 * channels, bias=False))
        self.project = _pair(lambda: nn.Linear(2 * channels, channels))
        self.norm = _pair(lambda: nn.LayerNorm(channels))
        self.skip = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.mix = nn.Sequential(
            nn.Conv2d(2 * channels, channels, 1),
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1),
            nn.BatchNorm2d(channels),
        )
        self.mixed_norm = nn.BatchNorm2d(channels)
        self.apply(_initialise)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Fuse (B, C, H, W) of either sensor into one (B, C, H, W)."""
        tokens = [x.flatten(2).transpose(1, 2) for x in (a, b)]  # (B, N, C) each
        halves = [e(x).relu().chunk(2, dim=-1) for e, x in zip(self.embed, tokens, strict=True)]
        kept, queries = zip(*halves, strict=True)  # what stays, what queries the other sensor
        summaries = [self._summary(kv(x)) for kv, x in zip(self.keys_values, queries, strict=True)]
        exchanged = []
        for x, own, query, summary, project, norm in zip(
            tokens, kept, queries, reversed(summaries), self.project, self.norm, strict=True
        ):
            answer = (self._split(query) @ summary).transpose(1, 2).flatten(2)  # (B, N, C)
            exchanged.append(norm(x + project(torch.cat([own, answer], dim=-1))))
        both = torch.cat(exchanged, dim=-1).transpose(1, 2)  # (B, 2C, N)
        both = both.view(*both.shape[:2], *a.shape[-2:])
        fused: Tensor = self.mixed_norm(self.skip(both) + self.mix(both))
        return fused

    def _split(self, x: Tensor) -> Tensor:
        """Split channels among the heads: (B, N, C) to (B, heads, N, C / heads)."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def _summary(self, keys_values: Tensor) -> Tensor:
        """Summarise keys and values, (B, N, 2C), as (B, heads, C / heads, C / heads)."""
        keys, values = map(self._split, keys_values.chunk(2, dim=-1))
        context = keys.transpose(-2, -1) @ values / math.sqrt(keys.shape[-1])
        return context.softmax(dim=-2)


class MLPDecoder(nn.Module):
    """SegFormer's decoder (Xie et al. 2021, equation 4), as CMX has it.

    Each map through a linear layer, upsampled to the first, concatenated, mixed, classified. As in
    the public code of CMX, the two convolutions after the linear layers start as He et al. 2015
    say (normal, by fan in), their biases and the linear layers as PyTorch says.

    Args:
        channels: of each map.
        outputs: number of classes.
        width: of the linear layers.
    """

    def __init__(self, channels: Sequence[int], outputs: int, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.mix = nn.Sequential(
            nn.Conv2d(len(channels) * width, width, 1),
            nn.BatchNorm2d(width, eps=1e-3),
            nn.ReLU(),
            nn.Dropout2d(0.1),
        )
        self.classify = nn.Conv2d(width, outputs, 1)
        for layer in (self.mix[0], self.classify):
            assert isinstance(layer, nn.Conv2d)
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu")

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Decode maps, (B, channels[i], h_i, w_i) each, to (B, outputs, h_0, w_0)."""
        size = maps[0].shape[-2:]
        embedded = [
            interpolate(embed(x), size, mode="bilinear")
            for embed, x in zip(self.embed, maps, strict=True)
        ]
        output: Tensor = self.classify(self.mix(torch.cat(embedded, dim=1)))
        return output


def _pair(make: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList([make(), make()])


def _initialise(module: nn.Module) -> None:
    """Initialise weights as the Mix Transformers and the authors' modules do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        window = module.kernel_size[0] * module.kernel_size[1]
        fan_out = window * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
