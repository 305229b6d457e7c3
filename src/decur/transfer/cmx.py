"""CMX: two Mix Transformers that correct each other after every stage (Zhang et al. 2023)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.encoders import Encoder, MiTEncoder
from decur.errors import ConfigError, DataError
from decur.transfer.fusion import Fusion

WIDTH = 512  # of the decoder
HEADS = (1, 2, 5, 8)  # of the cross-attention after each stage: as many as the stage itself has
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
        """(B, C, H, W) of either sensor to the same, corrected."""
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
        """(B, C, H, W) of either sensor to (B, C, H, W)."""
        tokens = [x.flatten(2).transpose(1, 2) for x in (a, b)]  # (B, N, C) each
        halves = [e(x).relu().chunk(2, dim=-1) for e, x in zip(self.embed, tokens, strict=True)]
        kept, asked = zip(*halves, strict=True)  # what stays, what asks the other sensor
        summaries = [self._summary(kv(x)) for kv, x in zip(self.keys_values, asked, strict=True)]
        exchanged = []
        for x, own, question, summary, project, norm in zip(
            tokens, kept, asked, reversed(summaries), self.project, self.norm, strict=True
        ):
            answer = (self._split(question) @ summary).transpose(1, 2).flatten(2)  # (B, N, C)
            exchanged.append(norm(x + project(torch.cat([own, answer], dim=-1))))
        both = torch.cat(exchanged, dim=-1).transpose(1, 2).unflatten(2, a.shape[-2:])
        return self.mixed_norm(self.skip(both) + self.mix(both))

    def _split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, heads, N, C / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _summary(self, keys_values: Tensor) -> Tensor:
        """(B, N, 2C) to (B, heads, C / heads, C / heads)."""
        keys, values = map(self._split, keys_values.chunk(2, dim=-1))
        context = keys.transpose(-2, -1) @ values / math.sqrt(keys.shape[-1])
        return context.softmax(dim=-2)


class MLPDecoder(nn.Module):
    """SegFormer's decoder (Xie et al. 2021, equation 4), as CMX has it.

    Each map through a linear layer, upsampled to the first, concatenated, mixed, classified.

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

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, channels[i], h_i, w_i) each to (B, outputs, h_0, w_0)."""
        size = maps[0].shape[-2:]
        embedded = [
            interpolate(embed(x), size, mode="bilinear")
            for embed, x in zip(self.embed, maps, strict=True)
        ]
        return self.classify(self.mix(torch.cat(embedded, dim=1)))


class CMX(Fusion):
    """Two Mix Transformers side by side; after each stage they correct each other, and are fused.

    The corrected maps go on into the next stage of either encoder, the four fused ones into the
    decoder. Where the encoders are frozen, what corrects their maps is trained through them.

    Args:
        encoders: `{modality: encoder}`, two MiT of one size.
        outputs: number of classes.

    Raises:
        ConfigError: for another number of sensors, or other encoders.

    Source: Zhang, Liu, Yang, Hu, Liu and Stiefelhagen 2023, "CMX: Cross-Modal Fusion for RGB-X
    Semantic Segmentation With Transformers".
    """

    def __init__(self, encoders: Mapping[str, Encoder], outputs: int) -> None:
        super().__init__(encoders, outputs)
        if len(encoders) != 2:
            raise ConfigError(
                f"head: cmx fuses two sensors, not {len(encoders)} ({', '.join(encoders)}); name "
                "two in modalities, or take fcn"
            )
        for name, encoder in encoders.items():
            if not isinstance(encoder, MiTEncoder):
                raise ConfigError(
                    f"head: cmx steps through the four stages of MiT encoders (mit_b0 to mit_b5), "
                    f"and {name} has {encoder.name!r}; pretrain one of those, or take fcn"
                )
        first, second = encoders.values()
        if first.channels != second.channels:
            raise ConfigError(
                f"head: cmx needs two encoders with equal stages, not {first.name!r} and "
                f"{second.name!r}; take one size for both"
            )
        self.rectify = nn.ModuleList(map(FeatureRectification, first.channels))
        self.fuse = nn.ModuleList(map(FeatureFusion, first.channels, HEADS))
        self.decoder = MLPDecoder(first.channels, outputs)

    def forward(
        self,
        images: Mapping[str, Tensor],
        present: Mapping[str, Tensor] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:
        """See `Fusion.forward`.

        Raises:
            DataError: if a sample lacks a sensor, or the sensors' pictures differ in size.
        """
        names = list(self.encoders)
        for name in names:
            if present is not None and not bool(present[name].all()):
                raise DataError(
                    f"cmx: a sample lacks {name!r}, and CMX needs both sensors of each; leave it "
                    "out, or take the head fcn"
                )
        a, b = (images[name] for name in names)
        if a.shape[-2:] != b.shape[-2:]:
            raise DataError(
                f"cmx: {names[0]!r} and {names[1]!r} must be of one size, not "
                f"{a.shape[-2]} x {a.shape[-1]} and {b.shape[-2]} x {b.shape[-1]}; set size"
            )
        size = size or (a.shape[-2], a.shape[-1])
        encoders = [self.encoder(name) for name in names]
        fused = []
        for number, (rectify, fuse) in enumerate(zip(self.rectify, self.fuse, strict=True)):
            a, b = (self._stage(e, number, x) for e, x in zip(encoders, (a, b), strict=True))
            a, b = rectify(a, b)
            fused.append(fuse(a, b))
        return interpolate(self.decoder(fused), size, mode="bilinear")

    @staticmethod
    def _stage(encoder: Encoder, number: int, x: Tensor) -> Tensor:
        assert isinstance(encoder, MiTEncoder)
        return encoder.stage(number, x)


def _pair(make: Callable[[], nn.Module]) -> nn.ModuleList:
    return nn.ModuleList([make(), make()])


def _initialise(module: nn.Module) -> None:
    """As the Mix Transformers, and the authors' modules between them, begin."""
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
