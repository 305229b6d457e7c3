"""The device that a command runs on, and small tensors on their way to it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from decur.errors import ConfigError


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small CPU tensor to a device, without waiting until it has arrived."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def send_batch(pictures: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Copy pictures to a device while it still computes on the batch before.

    A GPU copies on a stream of its own: pinned pictures arrive during the step that it still has
    to finish, and what is computed with them waits for the copy, but the host does not.
    """
    if device.type != "cuda":
        return {name: x.to(device, non_blocking=True) for name, x in pictures.items()}
    cuda: Any = torch.cuda  # torch does not annotate its streams
    copies, computing = _copy_stream(device), cuda.current_stream(device)
    with cuda.stream(copies):
        sent = {name: x.to(device, non_blocking=True) for name, x in pictures.items()}
    computing.wait_stream(copies)
    for x in sent.values():
        x.record_stream(computing)  # so that its memory is not given away before it is used
    return sent


@lru_cache(maxsize=8)
def _copy_stream(device: torch.device) -> Any:
    """Return the stream of a GPU that pictures come on."""
    cuda: Any = torch.cuda
    return cuda.Stream(device)


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


def check_processes(device: str, count: int) -> None:
    """Refuse more processes on this machine's CPU than it could run.

    Args:
        device: kind of the devices; of GPUs only those that are there can be asked for.
        count: of the devices on this machine, each of which has a process.

    Raises:
        ConfigError: with the number that may be had.
    """
    most = max(8, os.cpu_count() or 1)
    if device == "cpu" and count > most:
        raise ConfigError(
            f"trainer.devices: {count:,} processes on the CPU of this machine, and up to {most} "
            "are taken; lower it"
        )
