"""Modalities of which a process has no sample in a batch, while others may have some."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def stand_ins(
    encoders: Mapping[str, nn.Module] | nn.ModuleDict, rows: Mapping[str, Tensor]
) -> set[str]:
    """Modalities whose encoder has to be given a picture that stands for none.

    Transformers do not take an empty batch, and DDP waits for a gradient of every parameter. An
    encoder with batch normalisation takes one, and its statistics must not see anything else.

    Args:
        encoders: `{modality: encoder}`.
        rows: `{modality: (n,)}`, samples of this process that have it.
    """
    return {
        name
        for name, index in rows.items()
        if len(index) == 0
        and not any(isinstance(part, _BatchNorm) for part in encoders[name].modules())
    }


def nothing(parts: Iterable[nn.Module], like: Tensor) -> Tensor:
    """Zero that gives all parameters of some modules a zero gradient.

    What several processes give where a modality is absent from a whole batch. With no gradient
    instead, momentum and weight decay would not act on one process as they do on many.

    Args:
        parts: the modules.
        like: on whose device.
    """
    total = torch.zeros((), device=like.device)
    for part in parts:
        for parameter in part.parameters():
            if parameter.requires_grad:
                total = total + 0 * parameter.sum()
    return total
