"""Attention modules that follow the stages of a CNN. To add one, add a file that registers it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from pkgutil import iter_modules

from torch import nn

from decur.encoders.attention.base import ATTENTIONS, Stage
from decur.encoders.attention.cbam import CBAM
from decur.encoders.attention.cross import (
    CrossDeformableAttention,
    encode,
    encode_maps,
    is_crossing,
)
from decur.encoders.attention.deformable import DeformableAttention, Inspection
from decur.errors import ConfigError

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

__all__ = [
    "ATTENTIONS",
    "CBAM",
    "CrossDeformableAttention",
    "DeformableAttention",
    "Inspection",
    "attach",
    "encode",
    "encode_maps",
    "is_crossing",
]

PICTURE = 224  # px, which the paper's pictures have
LAST = 2  # stages that have an attention where only its name is given (section 3.2)


def attach(backbone: nn.Module, name: str, attention: str | Mapping[str, str]) -> dict[str, str]:
    """Put attention modules behind stages of a timm CNN.

    A module becomes the last layer of its stage, named "attention": the backbone's own weights
    keep their names, and whatever runs the stage runs it, too.

    Args:
        backbone: a timm model, changed in place.
        name: of the model, for messages.
        attention: `{stage: attention}`, or the name of the one that the last two stages get.

    Returns:
        `{stage: attention}`.

    Raises:
        ConfigError: for an attention that does not exist, or a stage that cannot take one.
    """
    stages = {
        info["module"]: info
        for info in backbone.feature_info  # type: ignore[union-attr]
        if isinstance(backbone.get_submodule(info["module"]), nn.Sequential)
    }
    if not stages:
        raise ConfigError(
            f"encoder {name!r} has no stages that an attention could follow, as a ResNet has; "
            "leave encoder.attention out"
        )
    names = list(stages)
    if isinstance(attention, str):
        attention = dict.fromkeys(names[-LAST:], attention)
    for stage, kind in attention.items():
        if kind not in ATTENTIONS:
            close = difflib.get_close_matches(kind, ATTENTIONS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"choose from {', '.join(ATTENTIONS)}"
            raise ConfigError(f"encoder.attention: no attention {kind!r}; {hint}")
        if stage not in stages:
            raise ConfigError(
                f"encoder.attention: {name!r} has no stage {stage!r} that an attention could "
                f"follow; choose from {', '.join(names)}"
            )
        info = stages[stage]
        side = -(-PICTURE // info["reduction"])
        later = len(names) - 1 - names.index(stage)
        module = ATTENTIONS[kind](Stage(stage, info["num_chs"], (side, side), later))
        backbone.get_submodule(stage).add_module("attention", module)
    return dict(attention)
