"""Attention from one sensor to another, whose encoders run together, stage by stage.

Encoders are run by `encode` and `encode_maps`, which run those with attention to each other
together; `is_crossing` tells which these are. A module crosses that has the attribute `crosses`,
true, and takes the other sensor's map as a second argument.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any

import torch
from timm.models import ResNet
from torch import Tensor, nn
from torch.nn.functional import interpolate

from decur.devices import send
from decur.encoders.attention.base import ATTENTIONS, Geometry, Stage
from decur.encoders.attention.deformable import DeformableAttention, for_stage
from decur.encoders.projector import ProjectedEncoder
from decur.errors import ConfigError

Present = Mapping[str, Tensor]


class CrossDeformableAttention(DeformableAttention):
    """Deformable attention whose keys and values come from the other sensor's map.

    An encoder that runs by itself attends to its own map, as `DeformableAttention` does.

    Source: DeCUR paper, appendix C, Table 7 ("Cross DA").
    """

    crosses = True


@ATTENTIONS.register("cross_da")
def _cross_da(stage: Stage, geometry: Geometry = "dat") -> CrossDeformableAttention:
    return for_stage(stage, residual=False, geometry=geometry, kind=CrossDeformableAttention)


def encode(
    encoders: nn.ModuleDict | Mapping[str, nn.Module],
    images: Mapping[str, Tensor],
    *,
    present: Present | None = None,
) -> dict[str, Tensor]:
    """Return the vectors of all sensors; encoders with attention to each other run together.

    Args:
        encoders: `{modality: encoder}`.
        images: `{modality: (n, C, H, W)}` in [0, 1], of any of them.
        present: `{modality: (B,) bool}` on the CPU: samples of the batch that its n images are of,
            in order; None: all. One that the other sensor lacks attends to its own map.

    Returns:
        `{modality: (n, D)}`.

    Raises:
        ConfigError: if encoders that attend to each other are more than two, or differ in where
            they do.
    """
    crossing = _crossing(encoders, images)
    vectors = {name: encoders[name](x) for name, x in images.items() if name not in crossing}
    if crossing:
        last = _step(encoders, {name: images[name] for name in crossing}, present)
        for name, maps in last.items():
            vectors[name] = _backbone(encoders[name]).forward_head(maps[-1])
            if isinstance(projected := encoders[name], ProjectedEncoder):
                vectors[name] = projected.project(vectors[name])
    return {name: vectors[name] for name in images}


def encode_maps(
    encoders: nn.ModuleDict | Mapping[str, nn.Module],
    images: Mapping[str, Tensor],
    *,
    present: Present | None = None,
) -> dict[str, list[Tensor]]:
    """Return the feature maps of all sensors, one a stage, as `encode` does the vectors.

    Args:
        encoders: as `encode` takes them.
        images: as `encode` takes them.
        present: as `encode` takes it.

    Returns:
        `{modality: (n, channels[i], h_i, w_i) each}`.

    Raises:
        ConfigError: as `encode` does.
    """
    crossing = _crossing(encoders, images)
    maps = _step(encoders, {n: images[n] for n in crossing}, present) if crossing else {}
    for name, x in images.items():
        if name not in maps:
            encoder: Any = encoders[name]
            maps[name] = encoder.forward_features(x)
    return {name: maps[name] for name in images}


def is_crossing(encoder: nn.Module) -> bool:
    """Return whether an encoder has attention to another one."""
    inner = _inner(encoder)
    stages = getattr(inner, "options", {}).get("attention") or ()
    return any(_crosses(inner.backbone.get_submodule(stage).attention) for stage in stages)


def _crosses(module: nn.Module) -> bool:
    return bool(getattr(module, "crosses", False))


def _named(encoder: nn.Module) -> str:
    """Return the name of an encoder's attention, for messages."""
    attention = _inner(encoder).options["attention"]
    return str(next(iter(attention.values())))


def _crossing(
    encoders: nn.ModuleDict | Mapping[str, nn.Module], images: Mapping[str, Tensor]
) -> list[str]:
    """Return the sensors whose encoders run together; one alone attends to itself."""
    crossing = [name for name in images if is_crossing(encoders[name])]
    return crossing if len(crossing) > 1 else []


def _inner(encoder: nn.Module) -> Any:
    return encoder.encoder if isinstance(encoder, ProjectedEncoder) else encoder


def _step(
    encoders: nn.ModuleDict | Mapping[str, nn.Module],
    images: Mapping[str, Tensor],
    present: Present | None,
) -> dict[str, list[Tensor]]:
    """Return the feature maps of two encoders that attend to each other."""
    if len(images) > 2:
        first, *_ = images
        raise ConfigError(
            f"encoder.attention: {_named(encoders[first])} joins two sensors, these are "
            f"{', '.join(images)}; choose another attention, or two of them with --modalities"
        )
    walks = {name: _walk(_backbone(encoders[name]), x) for name, x in images.items()}
    sent: dict[str, Tensor | None] = dict.fromkeys(walks)
    while True:
        asked: dict[str, Tensor] = {}
        ended: dict[str, list[Tensor]] = {}
        for name, walk in walks.items():
            try:
                asked[name] = walk.send(sent[name])
            except StopIteration as stop:
                ended[name] = stop.value
        if not asked:
            return ended
        one, other = images
        if ended or asked[one].shape[1] != asked[other].shape[1]:
            raise ConfigError(
                f"encoder.attention: the encoders of {one} and {other} attend to each other at "
                "different stages; give them the same architecture"
            )
        sent = {
            one: _source(asked, one, other, present),
            other: _source(asked, other, one, present),
        }


def _walk(backbone: Any, x: Tensor) -> Generator[Tensor, Tensor | None, list[Tensor]]:
    """Run a ResNet; give each map that attends to another, take that other, return all stages'."""
    x = backbone.act1(backbone.bn1(backbone.conv1(x)))
    maps = [x]
    x = backbone.maxpool(x)
    for info in backbone.feature_info[1:]:
        for layer in backbone.get_submodule(info["module"]).children():
            x = layer(x, (yield x)) if _crosses(layer) else layer(x)
        maps.append(x)
    return maps


def _source(maps: Mapping[str, Tensor], name: str, other: str, present: Present | None) -> Tensor:
    """Return for each sample of a sensor the other one's map, its own where there is none."""
    own, source = maps[name], maps[other]
    if present is None or bool((present[name] & present[other]).all()):
        return source
    if not bool((present[name] & present[other]).any()):
        return own
    row = present[other].cumsum(0).sub(1).where(present[other], -1)  # (B,) of the other's maps
    row = send(row[present[name]], own.device)  # (n,)
    if own.shape[-2:] != source.shape[-2:]:
        own = interpolate(own, source.shape[-2:], mode="bilinear")
    return torch.where((row >= 0)[:, None, None, None], source[row.clamp_min(0)], own)


def _backbone(encoder: nn.Module) -> Any:
    backbone = _inner(encoder).backbone
    if not isinstance(backbone, ResNet):
        raise ConfigError(
            f"encoder.attention: {_named(encoder)} follows stages of a ResNet, this is a "
            f"{type(backbone).__name__}; take 'rda', or a ResNet"
        )
    return backbone
