"""Encoders as a model of torchgeo-bench, which probes them on its data sets.

In a model's YAML, besides what torchgeo-bench wants there:

    _target_: decur.integrations.torchgeo_bench.DecurBench
    encoders: hf-hub:USER/REPO
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchgeo_bench.models.interface import BenchModel

from decur.integrations.matching import match

if TYPE_CHECKING:
    from torchgeo_bench.datasets.base import BandSpec


class DecurBench(BenchModel):  # type: ignore[misc]  # which has no types
    """The vectors of all sensors that the bands of a data set belong to, one after the other.

    Raw values are scaled as each encoder's modality says; torchgeo-bench is told to leave them.

    Args:
        bands: the channels of the data set.
        encoders: a run's folder, an encoder file, an export, or "hf-hub:USER/REPO".

    Raises:
        ConfigError: if the data set has no band of any encoder.
    """

    def __init__(self, bands: list[BandSpec], *, encoders: str, **unused: Any) -> None:
        super().__init__(bands=bands, normalization="identity")
        self.places: dict[str, list[int]] = {}  # of each sensor's channels
        for place, band in enumerate(bands):
            self.places.setdefault(band.sensor, []).append(place)
        offered = {
            sensor: [bands[place].name for place in places]
            for sensor, places in self.places.items()
        }
        self.sensors = nn.ModuleList(match(encoders, offered))

    @torch.no_grad()
    def _forward_patch_features(self, images: Tensor) -> Tensor:
        """Return vectors: (B, C, H, W) to (B, K), K the sum over the sensors."""
        found = []
        sensor: Any
        for sensor in self.sensors:
            own = images[:, self.places[sensor.group]]
            found.append(sensor.encoder(sensor.scaled(own)))  # (B, D)
        return torch.cat(found, dim=1)
