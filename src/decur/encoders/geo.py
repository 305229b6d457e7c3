"""torchgeo's architectures that timm lacks: CROMA, DOFA, and torchvision's Swin Transformers."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor, nn

from decur.devices import send
from decur.encoders.base import Encoder
from decur.errors import ConfigError, DataError, needing

TORCHGEO = "torchgeo:"
DEPTHS = 4  # a transformer without stages is read at four even depths
PATCH = 8  # px, of CROMA

Sensor = Literal["optical", "sar"]


class CROMAEncoder(Encoder):
    """One half of CROMA (Fuller et al. 2023): its encoder of optical pictures, or of radar.

    Args:
        name: "croma_base" or "croma_large".
        sensor: which half; "optical" takes the 12 bands of Sentinel-2 L2A, "sar" VV and VH.

    Raises:
        ConfigError: without torchgeo.
    """

    def __init__(self, name: str, *, sensor: Sensor) -> None:
        super().__init__()
        # biases for one patch: those for a picture follow when one comes
        made = _torchgeo(name)(modalities=[sensor], image_size=PATCH)
        prefix = "s2" if sensor == "optical" else "s1"
        self.transformer: Any = getattr(made, f"{prefix}_encoder")
        self.pool: Any = getattr(made, f"{prefix}_GAP_FFN")
        self.name, self.options = f"{TORCHGEO}{name}", {"sensor": sensor}
        self.dim, self.heads = made.encoder_dim, made.num_heads
        self.indices = _depths(len(self.transformer.transformer.layers))
        self.channels, self.strides = [self.dim] * DEPTHS, [PATCH] * DEPTHS
        self.biases = {made.num_patches: made.attn_bias}  # by the number of patches

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps at four depths: (B, D, H / 8, W / 8)."""
        side = x.shape[-1] // PATCH
        return [y.mT.unflatten(2, (side, side)) for y in self._tokens(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, bands, H, W) to (B, D)."""
        last = self.transformer.transformer.norm_out(self._tokens(x)[-1])
        vector: Tensor = self.pool(last.mean(1))
        return vector

    def _tokens(self, x: Tensor) -> list[Tensor]:
        height, width = x.shape[-2:]
        if height != width or width % PATCH:
            raise DataError(
                f"encoder {self.name!r} takes square pictures of a multiple of {PATCH} px, these "
                f"have {height} x {width}; set size"
            )
        bias = self._bias((width // PATCH) ** 2, x)
        # channels first within a patch
        y = nn.functional.unfold(x, PATCH, stride=PATCH).mT  # (B, patches, bands * 8 * 8)
        y = self.transformer.linear_input(y)
        found = []
        for number, (attend, mix) in enumerate(self.transformer.transformer.layers):
            y = attend(y, bias) + y
            y = mix(y) + y
            if number in self.indices:
                found.append(y)
        return found

    def _bias(self, patches: int, like: Tensor) -> Tensor:
        if patches not in self.biases:
            from torchgeo.models.croma import get_2dalibi

            self.biases = {patches: get_2dalibi(self.heads, patches)}
        bias: Tensor = self.biases[patches].to(like)
        if not bias.is_meta:  # where sizes alone are tried
            self.biases[patches] = bias  # stays on the device
        return bias


class DOFAEncoder(Encoder):
    """DOFA (Xiong et al. 2024): a transformer whose first layer follows from the wavelengths.

    Args:
        name: "dofa_base_patch16_224" or "dofa_large_patch16_224".
        wavelengths: of each band, in micrometres; of C-band radar 5.405, as its authors have it.

    Raises:
        ConfigError: without torchgeo.
    """

    def __init__(self, name: str, *, wavelengths: Sequence[float]) -> None:
        super().__init__()
        self.backbone: Any = _torchgeo(name)(num_classes=0)
        self.name, self.options = f"{TORCHGEO}{name}", {"wavelengths": list(wavelengths)}
        self.dim, self.patch = self.backbone.embed_dim, self.backbone.patch_size
        self.indices = _depths(len(self.backbone.blocks))
        self.channels, self.strides = [self.dim] * DEPTHS, [self.patch] * DEPTHS

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps at four depths: (B, D, H / 16, W / 16)."""
        grid = self._grid(x)
        return [y[:, 1:].mT.unflatten(2, grid) for y in self._tokens(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, bands, H, W) to (B, D)."""
        vector: Tensor = self.backbone.fc_norm(self._tokens(x)[-1][:, 1:].mean(1))
        return vector

    def _grid(self, x: Tensor) -> tuple[int, int]:
        height, width = ((side + 2 - self.patch) // self.patch + 1 for side in x.shape[-2:])
        return height, width  # its convolution pads by one

    def _tokens(self, x: Tensor) -> list[Tensor]:
        places = self.backbone.pos_embed
        if (grid := self._grid(x)) != (14, 14):
            places = resample_abs_pos_embed(places, list(grid))
        waves = send(torch.tensor(self.options["wavelengths"], dtype=x.dtype), x.device)
        y = self.backbone.patch_embed(x, waves)[0] + places[:, 1:]
        first = self.backbone.cls_token + places[:, :1]
        y = torch.cat([first.expand(len(y), -1, -1), y], dim=1)  # (B, 1 + patches, D)
        found = []
        for number, block in enumerate(self.backbone.blocks):
            y = block(y)
            if number in self.indices:
                found.append(y)
        return found


class SwinEncoder(Encoder):
    """A Swin Transformer of torchvision's, as torchgeo has it.

    Args:
        name: "swin_t", "swin_s", "swin_b", "swin_v2_t" or "swin_v2_b".
        bands: number of input bands.
    """

    def __init__(self, name: str, bands: int) -> None:
        super().__init__()
        import torchvision  # type: ignore[import-untyped]

        made = getattr(torchvision.models, name)(weights=None)
        width = made.features[0][0].out_channels
        made.features[0][0] = nn.Conv2d(bands, width, 4, stride=4)
        self.features, self.norm = made.features, made.norm
        self.name, self.options = f"{TORCHGEO}{name}", {}
        self.channels = [width * 2**stage for stage in range(4)]
        self.strides, self.dim = [4, 8, 16, 32], width * 8

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps: (B, channels[i], H / strides[i], W / strides[i])."""
        return [y.movedim(-1, 1) for y in self._stages(x)]

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, bands, H, W) to (B, D)."""
        vector: Tensor = self.norm(self._stages(x)[-1]).mean((1, 2))
        return vector

    def _stages(self, x: Tensor) -> list[Tensor]:
        found = []
        for number, layer in enumerate(self.features):
            x = layer(x)  # (B, h, w, C)
            if number % 2:  # layers between them halve the map
                found.append(x)
        return found


def build_geo(name: str, bands: int, **options: Any) -> Encoder:
    """Build one of this file's by torchgeo's name of it, without weights.

    Args:
        name: as `torchgeo.models.list_models` has it.
        bands: number of input bands, of Swin Transformers.
        **options: arguments of the class.

    Raises:
        ConfigError: for another name, for wrong options, or without torchgeo.
    """
    if name.startswith(("croma_", "dofa_")):
        kind: Any = CROMAEncoder if name.startswith("croma_") else DOFAEncoder
        try:
            inspect.signature(kind).bind(name, **options)
        except TypeError as error:
            raise ConfigError(
                f"encoder '{TORCHGEO}{name}': {error}; give it in encoder.options"
            ) from error
        made: Encoder = kind(name, **options)
        return made
    if name.startswith("swin_"):
        return SwinEncoder(name, bands)
    raise ConfigError(
        f"encoder '{TORCHGEO}{name}': no such architecture; of torchgeo's there are ResNets, ViTs, "
        "Swin Transformers, CROMA and DOFA"
    )


def require_torchgeo() -> Any:
    """Import torchgeo's models.

    Raises:
        ConfigError: naming what to install.
    """
    with needing("an encoder of torchgeo's", "geo"):
        import torchgeo.models
    return torchgeo.models


def _torchgeo(name: str) -> Any:
    return getattr(require_torchgeo(), name)


def _depths(blocks: int) -> list[int]:
    """Return the numbers of the blocks whose output is a feature map."""
    return sorted({(part + 1) * blocks // DEPTHS - 1 for part in range(DEPTHS)})
