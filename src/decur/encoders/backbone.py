"""Encoders by name: any CNN or ViT of timm's that gives feature maps, and our own."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

import timm
from torch import Tensor, nn

from decur.encoders.adapted import ADAPTED, AdaptedEncoder
from decur.encoders.alexnet import AlexNetEncoder
from decur.encoders.attention import attach
from decur.encoders.base import Encoder
from decur.encoders.geo import TORCHGEO, build_geo
from decur.encoders.mit import CHANNELS as MITS
from decur.encoders.mit import MiTEncoder
from decur.encoders.mlp import MLPEncoder
from decur.encoders.projected import PROJECTED, ProjectedEncoder
from decur.encoders.projector import Projector
from decur.errors import ConfigError
from decur.modality import Modality

MLP = "mlp"
ALEXNET = "alexnet"
VIT_STAGES = 4  # a ViT has no stages: its blocks are read at four even depths


class TimmEncoder(Encoder):
    """A timm model without its classifier.

    Its state dict has timm's own keys, so weights go in and out of plain timm models; those of an
    attention are `<stage>.attention.*`.

    Args:
        name: a timm model name.
        channels: number of input bands.
        pretrained: start from timm's weights (downloads them).
        attention: what follows which stage, as `{"layer3": "rda", "layer4": "rda"}`, or only its
            name for the last two stages: "rda", "da", "cbam" or "cross_da".
        **options: further arguments of `timm.create_model`.

    Raises:
        ConfigError: if timm has no such model, it gives no feature maps, its weights cannot be
            had, or it cannot have this attention.
    """

    def __init__(
        self,
        name: str,
        channels: int,
        /,
        *,
        pretrained: bool = False,
        attention: str | Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.options = dict(options)
        self.backbone: Any = _create(name, channels, pretrained, options)
        if attention:
            self.options["attention"] = attach(self.backbone, name, attention)
        info = self.backbone.feature_info
        stages = len(info)
        if isinstance(self.backbone, timm.models.VisionTransformer):
            self.indices = sorted({(i + 1) * stages // VIT_STAGES - 1 for i in range(VIT_STAGES)})
        else:
            self.indices = list(range(stages))
        self.channels = [info[i]["num_chs"] for i in self.indices]
        self.strides = [info[i]["reduction"] for i in self.indices]
        # some have layers between the last map and the vector
        self.dim = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Feature maps, one a stage: (B, channels[i], H / strides[i], W / strides[i])."""
        return self.backbone.forward_intermediates(x, indices=self.indices, intermediates_only=True)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""
        return self.backbone(x)


def _create(name: str, channels: int, pretrained: bool, options: dict[str, Any]) -> Any:
    arguments = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0, **options}
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = (
            f"did you mean {' or '.join(close)}?" if close else "see decur.encoders.list_encoders()"
        )
        raise ConfigError(f"no encoder {name!r}; {hint}")
    try:
        try:
            # a ViT has one input size; this lets it take others, as crops differ from pictures
            model = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:
            model = timm.create_model(name, **arguments)
    except OSError as error:  # whatever the hub and its clients raise without a network is one
        raise ConfigError(
            f"encoder {name!r}: its pretrained weights cannot be loaded "
            f"({' '.join(str(error).split())[:200]}); check the connection to the network, or "
            "load them once where there is one, and timm finds them in its cache"
        ) from error
    except (TypeError, RuntimeError, ValueError) as error:
        raise ConfigError(f"encoder {name!r}: {' '.join(str(error).split())}") from error
    if not hasattr(model, "forward_intermediates") or not getattr(model, "feature_info", None):
        raise ConfigError(f"encoder {name!r} gives no feature maps; choose another of timm's")
    return model


def _strip_prefix(
    module: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]
) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}backbone.")]:
        state[prefix + key.removeprefix(f"{prefix}backbone.")] = state.pop(key)


def _add_prefix(module: nn.Module, state: dict[str, Tensor], prefix: str, *unused: Any) -> None:
    for key in [key for key in state if key.startswith(prefix)]:
        state[f"{prefix}backbone.{key.removeprefix(prefix)}"] = state.pop(key)


def build_encoder(
    name: str, modality: Modality | int, *, pretrained: bool = False, **options: Any
) -> Encoder:
    """Build an encoder by name.

    Args:
        name: "resnet50", "vit_small_patch16_224", ...: any timm CNN or ViT with feature maps;
            "mit_b0" to "mit_b5" (see `MiTEncoder`); "alexnet"; "mlp", for measurements without a
            spatial layout (see `MLPEncoder`); "torchgeo:NAME", an architecture of torchgeo's that
            timm has not (see `decur.encoders.geo`); or what wraps another and whose `options` build
            it again: "projected" (`ProjectedEncoder`) and "adapted" (`AdaptedEncoder`).
        modality: the sensor, or only its number of bands.
        pretrained: start from timm's weights (downloads them).
        **options: further arguments of `TimmEncoder` (`attention`, and what `timm.create_model`
            takes), or of `MLPEncoder`.

    Returns:
        The encoder, its `modality` set where one was given.

    Raises:
        ConfigError: for an unknown name, with the closest known ones.

    Example:
        >>> import torch
        >>> encoder = build_encoder("resnet18", 13)
        >>> [m.shape[-1] for m in encoder.forward_features(torch.zeros(1, 13, 64, 64))]
        [32, 16, 8, 4, 2]
    """
    own = {
        **{MLP: _build_mlp, ALEXNET: _build_alexnet},
        **{PROJECTED: _build_projected, ADAPTED: _build_adapted},
    }
    if pretrained and (name in own or name.startswith(TORCHGEO)):
        raise ConfigError(f"encoder {name!r} has no pretrained weights; set pretrained to false")
    channels = modality if isinstance(modality, int) else modality.channels
    encoder: Encoder
    if name in MITS:
        encoder = _build_mit(name, channels, pretrained, options)
    elif name in own:
        encoder = own[name](channels, options)
    elif name.startswith(TORCHGEO):
        encoder = build_geo(name.removeprefix(TORCHGEO), channels, options)
    else:
        encoder = TimmEncoder(name, channels, pretrained=pretrained, **options)
    encoder.modality = None if isinstance(modality, int) else modality
    return encoder


def _build_mit(name: str, channels: int, pretrained: bool, options: dict[str, Any]) -> Encoder:
    if options:
        raise ConfigError(f"encoder {name!r}: has no options, got {', '.join(options)}")
    return MiTEncoder(name, channels, pretrained=pretrained)


def _build_mlp(channels: int, options: dict[str, Any]) -> Encoder:
    try:
        return MLPEncoder(channels, **options)
    except TypeError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"encoder {MLP!r}: {reason}; its options are width and layers") from error


def _build_alexnet(channels: int, options: dict[str, Any]) -> Encoder:
    if options:
        raise ConfigError(f"encoder {ALEXNET!r}: has no options, got {', '.join(options)}")
    return AlexNetEncoder(channels)


def _build_projected(channels: int, options: dict[str, Any]) -> Encoder:
    try:
        encoder = build_encoder(options["encoder"], channels, **options["options"])
        projector = Projector(encoder.dim, options["width"], options["layers"])
        return ProjectedEncoder(encoder, projector, options["part"])
    except KeyError as error:
        raise ConfigError(
            f"encoder {PROJECTED!r}: option {error} is missing; it is made of a run's encoder and "
            "projector, not by name"
        ) from error


def _build_adapted(channels: int, options: dict[str, Any]) -> Encoder:
    try:
        kept = [options[key] for key in ("rows", "mean", "std")]
        encoder = build_encoder(options["encoder"], len(kept[0]), **options["options"])
    except KeyError as error:
        raise ConfigError(
            f"encoder {ADAPTED!r}: option {error} is missing; it is made of weights of others, not "
            "by name"
        ) from error
    return AdaptedEncoder(encoder, *kept)


def list_encoders(pattern: str = "*") -> list[str]:
    """Names that `build_encoder` takes.

    Args:
        pattern: a shell pattern, as "resnet*".
    """
    return fnmatch.filter([ALEXNET, *MITS, MLP], pattern) + timm.list_models(pattern)
