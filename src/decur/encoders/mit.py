"""Mix Transformers, the encoders of SegFormer, from segmentation-models-pytorch's stages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from decur.encoders.base import ENCODERS, Encoder
from decur.encoders.imagenet import fold
from decur.errors import ConfigError, needing

CHANNELS = {  # of the four stages (Xie et al. 2021, Table 6)
    "mit_b0": [32, 64, 160, 256],
    **{f"mit_b{size}": [64, 128, 320, 512] for size in range(1, 6)},
}
SMALLEST = 29  # pixels, below which the first stage's keys, reduced by 8, are none


class MiTEncoder(Encoder):
    """A Mix Transformer (Xie et al. 2021, "SegFormer") without SegFormer's decoder.

    Its state dict has the keys of the NVlabs release (`patch_embed1.proj.weight`,
    `block1.0.norm1.weight`, ..., `norm4.weight`). Each feature map is normalised by its stage's
    last layer normalisation; the vector is the mean of the last one over all places. Pictures of
    any size from 29 px are taken; a map has a step for each begun stride, so that sides of
    multiples of 32 px waste nothing. Stochastic depth is the release's, up to 0.1.

    Attributes:
        stages: how many stages there are, see `stage`.

    Args:
        name: "mit_b0" to "mit_b5".
        bands: number of input bands.
        pretrained: start from weights of ImageNet (downloads them), the first layer adapted to the
            number of bands. `build_encoder` also adapts it to pictures in [0, 1].

    Raises:
        ConfigError: for another name, without segmentation-models-pytorch, or if the weights
            cannot be had.
    """

    stages = 4

    def __init__(self, name: str, bands: int, /, *, pretrained: bool = False) -> None:
        super().__init__()
        if name not in CHANNELS:
            raise ConfigError(f"no encoder {name!r}; choose from {', '.join(CHANNELS)}")
        self.name, self.options = name, {}
        self.channels, self.strides = list(CHANNELS[name]), [4, 8, 16, 32]
        self.dim = self.channels[-1]
        made = _create(name, bands, pretrained)
        for number in range(1, self.stages + 1):
            for part in ("patch_embed", "block", "norm"):
                self.add_module(f"{part}{number}", getattr(made, f"{part}{number}"))

    @torch.no_grad()
    def take_unit_pictures(self) -> None:
        """Let the first layer take pictures in [0, 1], in place of ImageNet's normalised ones."""
        first: Any = self.get_submodule("patch_embed1.proj")
        weight, shift = fold(first.weight)
        first.weight.copy_(weight)
        first.bias.sub_(shift)

    @torch.no_grad()
    def reorder_bands(self, order: Sequence[int]) -> None:
        """Let the first layer take its bands in another order, see `TimmEncoder.reorder_bands`."""
        first: Any = self.get_submodule("patch_embed1.proj")
        first.weight.copy_(first.weight[:, list(order)])

    def stage(self, number: int, x: Tensor) -> Tensor:
        """Run one stage alone, for models that change the maps between stages.

        Args:
            number: of the stage, from 0.
            x: the picture (B, bands, H, W) for stage 0, else the map of the stage before.

        Returns:
            (B, channels[number], ...), half the height and width of the map before, rounded up;
            a quarter of the picture.
        """
        if number == 0 and min(x.shape[-2:]) < SMALLEST:
            raise ConfigError(
                f"encoder {self.name!r}: takes pictures of {SMALLEST} px or more, these have "
                f"{x.shape[-2]} x {x.shape[-1]}; raise views.size or size, or take another encoder"
            )
        for part in ("patch_embed", "block", "norm"):
            x = self.get_submodule(f"{part}{number + 1}")(x)
        return x  # a view of (B, H, W, C), as the next stage's convolution likes it

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps: (B, channels[i], H / strides[i], W / strides[i]), rounded up."""
        maps = []
        for number in range(self.stages):
            x = self.stage(number, x)
            maps.append(x)
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""
        return self.forward_features(x)[-1].mean((2, 3))


def _create(name: str, bands: int, pretrained: bool) -> Any:
    with needing(f"encoder {name!r}", "mit"):
        from segmentation_models_pytorch.encoders import get_encoder
    try:
        made: Any = get_encoder(
            name, in_channels=bands, depth=5, weights="imagenet" if pretrained else None
        )
    except OSError as error:  # whatever the hub and its clients raise without a network is one
        raise ConfigError(
            f"encoder {name!r}: its pretrained weights cannot be loaded "
            f"({' '.join(str(error).split())[:200]}); check the connection to the network, or "
            "load them once where there is one, and they are found in the hub's cache"
        ) from error
    return made


for _name in CHANNELS:
    ENCODERS.register(_name)(partial(MiTEncoder, _name))
