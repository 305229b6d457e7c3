"""Encoders for pangaea-bench, of one sensor or of several at once.

A YAML file of pangaea's `configs/encoder`:

    _target_: decur.integrations.pangaea.DecurEncoder
    encoder_weights: runs/mine
    download_url: ""
    input_size: 224
    input_bands: {optical: [B1, B2, ...], sar: [VV, VH]}
    output_layers: [0, 1, 2, 3]

Take the preprocessing `seg_wo_norm`: the encoders scale raw values themselves.
"""

from __future__ import annotations

from logging import Logger
from typing import Any, cast

import torch
from pangaea.encoders.base import Encoder
from torch import Tensor, nn

from decur.errors import ConfigError
from decur.integrations.matching import match


class DecurEncoder(Encoder):  # type: ignore[misc]  # which has no types
    """The feature maps of the sensors, joined stage by stage.

    Args:
        encoder_weights: a run's folder, an encoder file, an export, or "hf-hub:USER/REPO".
        input_bands: `{pangaea's name of a sensor: its bands}`.
        input_size: of the pictures, in pixels.
        output_layers: which stages.
        download_url: not used.

    Raises:
        ConfigError: if no encoder has a band there, or stages cannot be joined.
    """

    def __init__(
        self,
        encoder_weights: str,
        input_bands: dict[str, list[str]],
        input_size: int,
        output_layers: list[int],
        download_url: str = "",
    ) -> None:
        found = match(str(encoder_weights), input_bands)
        strides = [[each.encoder.strides[k] for k in output_layers] for each in found]
        if any(each != strides[0] for each in strides):
            raise ConfigError(f"encoders: {encoder_weights}: maps of its sensors differ in size")
        super().__init__(
            model_name="decur",
            input_bands=input_bands,
            input_size=input_size,
            embed_dim=sum(each.encoder.dim for each in found),
            output_layers=output_layers,
            output_dim=[sum(each.encoder.channels[k] for each in found) for k in output_layers],
            multi_temporal=False,
            multi_temporal_output=False,
            pyramid_output=len(set(strides[0])) > 1,
            encoder_weights=encoder_weights,
            download_url="",
        )
        self.sensors = nn.ModuleList(found)

    def load_encoder_weights(self, logger: Logger) -> None:
        """Say where the weights, which are there already, come from."""
        logger.info("weights of %s, loaded by decur", self.encoder_weights)

    def forward(self, image: dict[str, Tensor]) -> list[Tensor]:
        """Return maps: `{sensor: (B, C, H, W) or (B, C, 1, H, W)}` to one of each stage."""
        maps, sensors = [], cast(Any, self.sensors)
        for sensor in sensors:
            x = image[sensor.group]
            x = x.squeeze(2) if x.ndim == 5 else x  # (B, C, H, W)
            maps.append(sensor.encoder.forward_features(sensor.scaled(x)))
        return [torch.cat([stages[k] for stages in maps], dim=1) for k in self.output_layers]
