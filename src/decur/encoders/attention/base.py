"""The stage that an attention is made for, the registry of attentions, and their place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from decur.errors import ConfigError
from decur.registry import Registry, is_ours

Geometry = Literal["dat", "centred"]  # where deformable points start, see `DeformableAttention`


@dataclass(frozen=True)
class Stage:
    """The stage of an encoder that an attention comes after.

    Args:
        name: of the stage, as the encoder's own code calls it ("layer3").
        channels: of its feature map.
        size: height and width of the map for pictures of 224 px.
        later: number of stages after it.
    """

    name: str
    channels: int
    size: tuple[int, int]
    later: int


# A builder takes the stage, and gives a module from (B, C, H, W) to the same shape. One whose
# points move has a second parameter, `geometry`, which encoder files then keep.
Builder = Callable[..., nn.Module]

ATTENTIONS: Registry[Builder] = Registry("attention", "decur.encoders.attention")

PICTURE = 224  # px, which the paper's pictures have
LAST = 2  # stages that have an attention where only its name is given (section 3.2)


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
        moves: dict[str, Any] = {"geometry": geometry} if _takes_geometry(builder) else {}
        module = builder(Stage(stage, info["num_chs"], (side, side), later), **moves)
        backbone.get_submodule(stage).add_module("attention", module)
    return dict(attention)


def has_geometry(attention: str | Mapping[str, str] | None, *, of_decur: bool = False) -> bool:
    """Return whether an attention, or one of `{stage: attention}`, takes a geometry.

    Args:
        attention: names; one that is not known, and would have to be imported, takes none.
        of_decur: count only the attentions of this package, whose geometry version 0.1 did not
            write down.
    """
    names = attention.values() if isinstance(attention, Mapping) else (attention,)
    known = [name for name in names if isinstance(name, str) and ATTENTIONS.is_known(name)]
    builders = map(ATTENTIONS.get, known)
    return any(_takes_geometry(each) for each in builders if is_ours(each) or not of_decur)


def _takes_geometry(builder: Builder) -> bool:
    return "geometry" in inspect.signature(builder).parameters
