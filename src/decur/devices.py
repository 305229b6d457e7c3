"""The device that a command runs on, and small tensors on their way to it."""

from __future__ import annotations

import torch
from torch import Tensor

from decur.errors import ConfigError


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor to the device, without waiting for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def choose_device(name: str, key: str = "device") -> str:
    """Return "cpu" or "cuda".

    Args:
        name: one of them, or "auto" for the GPU where there is one.
        key: of the configuration, for the message.

    Raises:
        ConfigError: for "cuda" where there is no GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"{key}: cuda is not there; use cpu or auto")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name
