"""The base of every encoder, whatever library its layers come from, and their registry."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from decur.errors import ConfigError, DataError
from decur.modality import Modality
from decur.registry import Registry

# A builder takes the number of bands, and the options of the encoder by name. One that can start
# from published weights has an option `pretrained`.
Builder = Callable[..., "Encoder"]

ENCODERS: Registry[Builder] = Registry("encoder", "decur.encoders")


class Encoder(nn.Module, ABC):
    """A picture of one sensor to feature maps and to one vector.

    To add one, write a file with a subclass, or a function that returns one, which
    `ENCODERS.register` names.

    Attributes:
        name: the architecture, as `build_encoder` takes it; it sets the name.
        channels: number of channels of the feature map of each stage.
        strides: of the feature map of each stage: input pixels for each step of the map.
        dim: length D of the pooled vector.
        modality: the sensor it was trained on, None while unknown.
        options: the options that `build_encoder` needs to build it again; by default those that
            it was given.
    """

    name: str
    channels: list[int]
    strides: list[int]
    dim: int
    modality: Modality | None = None
    options: dict[str, Any]

    @abstractmethod
    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps, one a stage: (B, channels[i], H / strides[i], W / strides[i])."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""

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


def refuse_name(modality: str) -> None:
    """Refuse a sensor's name that PyTorch does not take for the name of a module.

    Raises:
        ConfigError: for a name with a dot, or one that PyTorch uses itself.
    """
    if "." in modality:
        raise ConfigError(f"modality {modality!r}: a name must not hold a dot; rename it")
    if not modality or hasattr(nn.ModuleDict(), modality):
        raise ConfigError(f"modality {modality!r}: PyTorch keeps this name for itself; rename it")


@torch.no_grad()
def refuse_size(
    encoder: Encoder, modality: Modality, *, size: tuple[int, int], key: str = "views.size"
) -> None:
    """Refuse pictures of a size that an encoder does not take.

    The encoder is run on shapes alone (PyTorch's "meta" device), or, where it needs numbers, on
    two black pictures.

    Args:
        encoder: of any kind.
        modality: the sensor.
        size: height and width.
        key: of the configuration that gives the size, for the message.

    Raises:
        ConfigError: with what the encoder says, or if its vectors are not of its width.
    """
    training = encoder.training
    encoder.eval()
    try:
        found = _tried(encoder, (2, modality.channels, *size))
    except (AssertionError, RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"encoder {encoder.name!r} of {modality.name!r} does not take pictures of "
            f"{size[0]} x {size[1]} pixels ({key}) with encoder.options as they are: {reason}"
        ) from error
    finally:
        encoder.train(training)
    if found != (2, encoder.dim):
        raise ConfigError(
            f"encoder {encoder.name!r} of {modality.name!r}: gives {found} for two pictures, "
            f"(2, {encoder.dim}) is expected; see encoder.options"
        )


def _tried(encoder: Encoder, shape: tuple[int, ...]) -> tuple[int, ...]:
    state = {k: v.to("meta") for k, v in (*encoder.named_parameters(), *encoder.named_buffers())}
    try:
        given = functional_call(encoder, state, (torch.empty(shape, device="meta"),))
    except Exception:  # the encoder's own, or of an operation that needs numbers
        return tuple(encoder(torch.zeros(shape)).shape)
    return tuple(given.shape)
