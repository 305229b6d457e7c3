"""Encoders by name: timm's, those of this package, and encoders of one's own."""

from __future__ import annotations

import fnmatch
import inspect
import traceback
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from decur.encoders.base import ADAPTED, ENCODERS, AdaptedEncoder, Builder, Encoder, WrappedEncoder
from decur.encoders.geo import TORCHGEO, build_geo
from decur.encoders.mit import MiTEncoder
from decur.encoders.projector import PROJECTED, ProjectedEncoder, Projector
from decur.encoders.timm_models import TimmEncoder
from decur.errors import ConfigError, DecurError, enumerated
from decur.modality import Modality, plain_band
from decur.registry import is_ours

# Encoders around another one. They are built again from a file, and not chosen by name.
_AROUND_OTHERS = (PROJECTED, ADAPTED)


def build_encoder(
    name: str, modality: Modality | int, *, pretrained: bool = False, **options: Any
) -> Encoder:
    """Build an encoder by name.

    Args:
        name: "resnet50", "vit_small_patch16_224", ...: any timm CNN or ViT with feature maps;
            "mit_b0" to "mit_b5" (see `MiTEncoder`); "alexnet"; "mlp", for measurements without a
            spatial layout (see `MLPEncoder`); "torchgeo:NAME", an architecture of torchgeo's that
            timm does not have (see `decur.encoders.geo`); any other name that is registered in
            `ENCODERS` (see `register_encoder`); or "package.module:function", which builds an
            encoder, or any other network, of one's own.
        modality: the sensor, or only its number of bands.
        pretrained: start from published weights (downloads them). Weights of photographs take
            pictures in [0, 1], normalised as in their training; the colours of three bands are
            found by name (R, G, B or Sentinel-2's B4, B3, B2), other bands are taken as they come.
        **options: further arguments of what builds the encoder: of `TimmEncoder` (`attention`, and
            what `timm.create_model` takes), of `MLPEncoder`, ...

    Returns:
        The encoder, its `modality` set where one was given.

    Raises:
        ConfigError: for an unknown name, with the closest known ones, or for wrong options.

    Examples:
        >>> import torch
        >>> encoder = build_encoder("resnet18", 13)
        >>> [m.shape[-1] for m in encoder.forward_features(torch.zeros(1, 13, 64, 64))]
        [32, 16, 8, 4, 2]
    """
    if not isinstance(modality, Modality | int):
        raise ConfigError(
            f"encoder {name!r}: is for a Modality, or for a number of bands, not {modality!r}"
        )
    channels = modality if isinstance(modality, int) else modality.channels
    if channels < 1:
        raise ConfigError(f"encoder {name!r}: needs a band at least, got {channels}")
    builder = _builder(name)
    normal = isinstance(modality, Modality) and modality.scaling == "zscore"  # the pictures are
    if builder is None:
        if pretrained and normal:
            unchanged = {"mean": [0.0] * channels, "std": [1.0] * channels}
            options = {"normalisation": unchanged, **options}
        encoder: Encoder = TimmEncoder(name, channels, pretrained=pretrained, **options)
    else:
        encoder = _built(name, builder, modality, pretrained=pretrained, options=options)
    encoder.modality = None if isinstance(modality, int) else modality
    if pretrained and not normal and isinstance(encoder, MiTEncoder):
        encoder.take_unit_pictures()
    if pretrained and isinstance(encoder, TimmEncoder | MiTEncoder):
        order = colour_order(() if isinstance(modality, int) else modality.bands)
        if order != sorted(order):
            encoder.reorder_bands(order)
    return encoder


def colour_order(bands: Sequence[str]) -> list[int]:
    """Return each band's place in red, green, blue; empty where the bands are not these three."""
    have = [plain_band(band) for band in bands]
    for colours in (("R", "G", "B"), ("RED", "GREEN", "BLUE"), ("B4", "B3", "B2")):
        if sorted(have) == sorted(colours):
            return [colours.index(band) for band in have]
    return []


def _builder(name: str) -> Builder | None:
    """Return what builds an encoder; None where timm does."""
    if name.startswith(TORCHGEO):
        return partial(build_geo, name.removeprefix(TORCHGEO))
    if ":" in name or name in ENCODERS.names():
        return ENCODERS.get(name, key="encoder.name" if ":" in name else "")
    return None


def takes_modality(builder: Builder) -> bool:
    """Return whether a builder takes the sensor, in place of the number of its bands."""
    first = next(iter(inspect.signature(builder).parameters.values()), None)
    return first is not None and (
        first.name == "modality" or first.annotation in (Modality, "Modality")
    )


def options_of_builder(builder: Builder) -> set[str]:
    """Return the names of a builder's options: what it takes by name, after its first argument."""
    others = list(inspect.signature(builder).parameters.values())[1:]
    named = [
        each for each in others if each.kind in (each.KEYWORD_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    return {each.name for each in named} - {"pretrained"}


def _built(
    name: str,
    builder: Builder,
    modality: Modality | int,
    *,
    pretrained: bool,
    options: dict[str, Any],
) -> Encoder:
    """Call a registered builder, once it is clear that it takes these options."""
    channels = modality if isinstance(modality, int) else modality.channels
    first = modality if takes_modality(builder) else channels
    if takes_modality(builder) and isinstance(modality, int):
        raise ConfigError(f"encoder {name!r}: is built for a sensor; give the Modality, no number")
    signature = inspect.signature(builder)
    given: dict[str, Any] = dict(options)
    if pretrained and "pretrained" not in signature.parameters:
        raise ConfigError(f"encoder {name!r} has no pretrained weights; set pretrained to false")
    if pretrained:
        given["pretrained"] = True
    try:
        signature.bind(first, **given)
    except TypeError as error:
        known = sorted(options_of_builder(builder), key=list(signature.parameters).index)
        if not known:
            raise ConfigError(
                f"encoder {name!r}: has no options, got {', '.join(options)}"
            ) from error
        raise ConfigError(
            f"encoder {name!r}: {error}; its options are {enumerated(known)}"
        ) from error
    made: Any = _call(name, builder, first, given)
    if not isinstance(made, nn.Module):
        raise ConfigError(f"encoder {name!r}: gives a {type(made).__name__}, no torch.nn.Module")
    encoder = made if isinstance(made, Encoder) else WrappedEncoder(made, channels)
    encoder.name = name  # under which a file finds the builder again
    if "options" not in vars(encoder):
        encoder.options = dict(options)
    return encoder


def _call(name: str, builder: Builder, first: Modality | int, options: dict[str, Any]) -> Any:
    """Call a builder; what goes wrong within one of a person's own is that person's to mend.

    Raises:
        ConfigError: naming the builder's error, and where it came up.
    """
    try:
        return builder(first, **options)
    except DecurError:
        raise
    except Exception as error:
        tried = torch.get_default_device().type == "meta"  # on shapes alone, which may not work
        if tried or is_ours(builder):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"encoder {name!r}: its builder ended in {type(error).__name__}: {error} "
            f"({frame.filename}, line {frame.lineno})"
        ) from error


@ENCODERS.register(PROJECTED)
def _build_projected(channels: int, **options: Any) -> Encoder:
    try:
        encoder = build_encoder(options["encoder"], channels, **options["options"])
        more = {key: options[key] for key in ("hidden", "last_norm") if key in options}
        projector = Projector(encoder.dim, options["width"], layers=options["layers"], **more)
        return ProjectedEncoder(encoder, projector, part=options["part"])
    except KeyError as error:
        raise ConfigError(
            f"encoder {PROJECTED!r}: option {error} is missing; it is made of a run's encoder and "
            "projector, not by name"
        ) from error


@ENCODERS.register(ADAPTED)
def _build_adapted(channels: int, **options: Any) -> Encoder:
    try:
        rows, mean, std = (options[key] for key in ("rows", "mean", "std"))
        encoder = build_encoder(options["encoder"], len(rows), **options["options"])
    except KeyError as error:
        raise ConfigError(
            f"encoder {ADAPTED!r}: option {error} is missing; it is made of weights of others, not "
            "by name"
        ) from error
    return AdaptedEncoder(encoder, rows, mean=mean, std=std)


def architecture_inside(name: str, options: Mapping[str, Any]) -> str:
    """Return the name of an encoder, or of the one that it is built around.

    Args:
        name: of the encoder.
        options: what else `build_encoder` needs to build it again.
    """
    while name in _AROUND_OTHERS and isinstance(options, Mapping) and "encoder" in options:
        name, options = options["encoder"], options.get("options", {})
    return name


def can_be_built(name: str) -> bool:
    """Return whether `build_encoder` knows a name."""
    known = name.startswith(TORCHGEO) or ":" in name or name in ENCODERS.names()
    return known or timm.is_model(name)


def list_encoders(pattern: str = "*") -> list[str]:
    """Return the names that `build_encoder` takes.

    Args:
        pattern: a shell pattern, as "resnet*".
    """
    own = [name for name in ENCODERS.names() if name not in _AROUND_OTHERS]
    return fnmatch.filter(own, pattern) + timm.list_models(pattern)
