"""Activation checkpointing: activations are computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from decur.encoders.attention.cross import is_crossing
from decur.encoders.base import Encoder
from decur.encoders.mit import MiTEncoder
from decur.errors import ConfigError


def checkpoint_activations(encoder: Encoder) -> None:
    """Keep only what goes in and out of an encoder's blocks (Chen et al. 2016, "sublinear memory").

    timm's models do it themselves. Gradients are the same; see `batch_statistics` for what is not.

    Args:
        encoder: changed in place; its state dict keeps its keys.

    Raises:
        ConfigError: if the encoder cannot do it.
    """
    backbone: Any = getattr(encoder, "backbone", None)
    if is_crossing(encoder):
        raise _refusal(encoder, "with attention to another sensor runs stage by stage")
    if callable(getattr(backbone, "set_grad_checkpointing", None)):
        try:
            backbone.set_grad_checkpointing(True)
        except AssertionError as error:  # timm's word for it
            raise _refusal(encoder, "does not support it in timm") from error
    elif isinstance(encoder, MiTEncoder):
        for number in range(1, encoder.stages + 1):
            for block in encoder.get_submodule(f"block{number}").children():
                again: Any = partial(checkpoint, block.forward, use_reentrant=False)
                block.forward = again
    else:
        raise _refusal(encoder, "has no blocks that could be computed again")


def _refusal(encoder: Encoder, reason: str) -> ConfigError:
    return ConfigError(
        f"encoder.checkpointing: {encoder.name!r} {reason}; set it to false, or choose another of "
        "timm's models"
    )


def batch_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Yield the running statistics of batch normalisations.

    Layers that are computed again update them again: keep them before a backward pass and put them
    back after it.
    """
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            yield from part.buffers(recurse=False)
