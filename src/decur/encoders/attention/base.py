"""The stage that an attention is made for, the registry of attentions, and their place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from decur.errors import ConfigError
from decur.registry import Registry

Geometry = Literal["dat", "centred"]  # where deformable points start, see `DeformableAttention`


@dataclass(frozen=True)
class Stage:
    """The stage of an encoder that an attention comes after.

    Args:
        name: of the stage, as the encoder's own code calls it ("layer3").
        channels: of its feature map.
        size: height and width of the map for pictures of 224 px.
        later: number of stages after it.
        geometry: of attention whose points move.
    """

    name: str
    channels: int
    size: tuple[int, int]
    later: int
    geometry: Geometry = "dat"


# A builder takes the stage, and gives a module from (B, C, H, W) to the same shape.
Builder = Callable[[Stage], nn.Module]

ATTENTIONS: Registry[Builder] = Registry("attention", "decur.encoders.attention")

PICTURE = 224  # px, which the paper's pictures have
LAST = 2  # stages that have an attention where only its name is given (section 3.2)
DEFORMABLE = ("rda", "da", "cross_da")  # attentions that have a geometry


def attach(
    backbone: nn.Module,
    name: str,
    *,
    attention: str | Mapping[str, str],
    geometry: Geometry = "dat",
) -> dict[str, str]:
    """Put attention modules behind stages of a timm CNN.

    A module becomes the last layer of its stage, named "attention": the backbone's own weights
    keep their names, and whatever runs the stage runs it, too.

    Args:
        backbone: a timm model, changed in place.
        name: of the model, for messages.
        attention: `{stage: attention}`, or the name of the one that the last two stages get.
        geometry: of attention whose points move.

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
        builder = ATTENTIONS.get(kind, key="encoder.attention")
        if stage not in stages:
            raise ConfigError(
                f"encoder.attention: {name!r} has no stage {stage!r} that an attention could "
                f"follow; choose from {', '.join(names)}"
            )
        info = stages[stage]
        side = -(-PICTURE // info["reduction"])
        later = len(names) - 1 - names.index(stage)
        module = builder(Stage(stage, info["num_chs"], (side, side), later, geometry))
        backbone.get_submodule(stage).add_module("attention", module)
    return dict(attention)


def has_geometry(attention: str | Mapping[str, str] | None) -> bool:
    """Return whether an attention, or one of `{stage: attention}`, has points that move."""
    kinds = attention.values() if isinstance(attention, Mapping) else (attention,)
    return any(kind in DEFORMABLE for kind in kinds)
