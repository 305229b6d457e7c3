"""Encoders as a backbone of terratorch, of one sensor or of several at once.

A file in the folder that `custom_modules_path` names imports this module; then, in the YAML:

    model_args:
      backbone: decur_encoders
      backbone_encoders: hf-hub:USER/REPO
      backbone_bands: {S2L2A: [B01, B02, ...], S1GRD: [VV, VH]}

One sensor that timm has the architecture of needs no code: `backbone: timm_local-dir:FOLDER` takes
what `decur export --format hub` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY
from torch import Tensor, nn

from decur.errors import ConfigError
from decur.integrations.matching import match

_ALONE = "image"


class DecurBackbone(nn.Module):
    """The feature maps of the sensors, joined stage by stage.

    Args:
        encoders: a run's folder, an encoder file, an export, or "hf-hub:USER/REPO".
        bands: the channels of the pictures, in their order; for pictures of several sensors
            `{the data module's name of a sensor: its channels}`.

    The pictures have to come raw, as the encoders' modalities scale them: give the data module
    means of 0 and standard deviations of 1.

    Raises:
        ConfigError: if no encoder has a band there, or the stages of two cannot be joined.
    """

    def __init__(self, encoders: str, bands: Sequence[str] | Mapping[str, Sequence[str]]) -> None:
        super().__init__()
        offered = dict(bands) if isinstance(bands, Mapping) else {_ALONE: list(bands)}
        found = match(encoders, offered)
        strides = found[0].encoder.strides
        if any(each.encoder.strides != strides for each in found):
            raise ConfigError(f"encoders: {encoders}: maps of its sensors differ in size")
        self.sensors = nn.ModuleList(found)
        stages = zip(*(each.encoder.channels for each in found), strict=True)
        self.out_channels = [sum(widths) for widths in stages]

    def forward(self, images: Tensor | Mapping[str, Tensor]) -> list[Tensor]:
        """Return maps, one a stage: of (B, C, H, W), or of `{sensor: (B, C, H, W)}`."""
        given = images if isinstance(images, Mapping) else {_ALONE: images}
        sensors: Any = self.sensors
        maps = [
            sensor.encoder.forward_features(sensor.scaled(given[sensor.group]))
            for sensor in sensors
        ]
        return [torch.cat(stage, dim=1) for stage in zip(*maps, strict=True)]


def decur_encoders(
    encoders: str, bands: Sequence[str] | Mapping[str, Sequence[str]], **unused: Any
) -> DecurBackbone:
    """Build the backbone, as terratorch's registry does."""
    return DecurBackbone(encoders, bands)


TERRATORCH_BACKBONE_REGISTRY.register(decur_encoders)
