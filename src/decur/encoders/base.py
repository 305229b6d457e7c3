"""What every encoder is, whatever library its layers come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from decur.errors import DataError
from decur.modality import Modality


class Encoder(nn.Module, ABC):
    """A picture of one sensor to feature maps and to one vector.

    Attributes:
        name: the architecture, as `build_encoder` takes it.
        channels: of the feature map of each stage.
        strides: of the feature map of each stage: input pixels for each step of the map.
        dim: length D of the pooled vector.
        modality: the sensor it was trained on, None while unknown.
        options: what else `build_encoder` needs to build it again.
    """

    name: str
    channels: list[int]
    strides: list[int]
    dim: int
    modality: Modality | None = None
    options: dict[str, Any]

    @abstractmethod
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps, one a stage: (B, channels[i], H / strides[i], W / strides[i])."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""

    def check(self, modality: Modality) -> None:
        """Refuse data of another sensor.

        Raises:
            DataError: saying what differs.
        """
        if self.modality is None:
            return
        differences = self.modality.differences(modality)
        if differences:
            raise DataError(
                f"the encoder was trained on {self.modality.name!r} and the data "
                f"{modality.name!r} differs in {'; '.join(differences)}"
            )
