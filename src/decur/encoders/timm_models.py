"""timm's CNNs and ViTs as encoders: any that gives feature maps."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn

from decur.encoders.attention.base import Geometry, attach, has_geometry
from decur.encoders.base import Encoder
from decur.encoders.imagenet import dealt_out
from decur.errors import ConfigError

Normalisation = Mapping[str, Sequence[float]]  # "mean" and "std", a number for each band

# Options of timm that name weights to start from. They do not belong to an encoder that has some.
STARTS_FROM = frozenset(
    {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
)

VIT_STAGES = 4  # a ViT has no stages: its blocks are read at four even depths


class TimmEncoder(Encoder):
    """A timm model without its classifier.

    Its state dict has timm's own keys, so weights go in and out of plain timm models; those of an
    attention are `<stage>.attention.*`.

    Args:
        name: a timm model name.
        channels: number of input bands.
        pretrained: start from timm's weights (downloads them). The first layer then takes pictures
            in [0, 1] to the mean and deviation that the weights were trained with.
        normalisation: `{"mean": [...], "std": [...]}` of each band, that pictures in [0, 1] are
            normalised by before the first layer; None: that of pretrained weights, else none.
        attention: the attention after each stage, as `{"layer3": "rda", "layer4": "rda"}`, or
            one name for the last two stages: "rda", "da", "cbam" or "cross_da".
        geometry: where the points of "rda", "da" and "cross_da" start: "dat", as in DAT++ and in
            the paper, or "centred", as in version 0.1; see `DeformableAttention`.
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
        normalisation: Normalisation | None = None,
        attention: str | Mapping[str, str] | None = None,
        geometry: Geometry = "dat",
        **options: Any,
    ) -> None:
        super().__init__()
        self.name = name
        self.options = {k: v for k, v in options.items() if k not in STARTS_FROM}
        self.backbone: Any = _create(name, channels, pretrained, options)
        if normalisation is None and pretrained:
            normalisation = _own_normalisation(self.backbone, channels)
        if normalisation is not None and _changes(normalisation):
            self.options["normalisation"] = {k: list(v) for k, v in normalisation.items()}
            for layer in first_layers(self.backbone):
                _normalise_before(layer, normalisation)
        if attention:
            kinds = attach(self.backbone, name, attention=attention, geometry=geometry)
            self.options["attention"] = kinds
            if has_geometry(kinds):
                self.options["geometry"] = geometry
        info = self.backbone.feature_info
        stages = len(info)
        if isinstance(self.backbone, timm.models.VisionTransformer):
            self.indices = sorted({(i + 1) * stages // VIT_STAGES - 1 for i in range(VIT_STAGES)})
        else:
            self.indices = list(range(stages))
        self.channels = [info[i]["num_chs"] for i in self.indices]
        self.strides = [info[i]["reduction"] for i in self.indices]
        # Some models have layers between the last map and the vector.
        self.dim = getattr(self.backbone, "head_hidden_size", self.backbone.num_features)
        nn.Module.register_state_dict_post_hook(self, _strip_prefix)
        nn.Module.register_load_state_dict_pre_hook(self, _add_prefix)

    def forward_features(self, x: Tensor) -> list[Tensor]:
        """Return feature maps, one a stage: (B, channels[i], H / strides[i], W / strides[i])."""
        maps: list[Tensor] = self.backbone.forward_intermediates(
            x, indices=self.indices, intermediates_only=True
        )
        return maps

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled vector: (B, C, H, W) in [0, 1] to (B, D)."""
        vector: Tensor = self.backbone(x)
        return vector

    def normalise(self, normalisation: Normalisation) -> None:
        """Normalise pictures in [0, 1] before the first layer, as weights of others want it.

        Args:
            normalisation: `{"mean": [...], "std": [...]}`, a number for each band.
        """
        known = "normalisation" in self.options
        self.options["normalisation"] = {k: list(v) for k, v in normalisation.items()}
        for layer in first_layers(self.backbone):
            (_set_normalisation if known else _normalise_before)(layer, normalisation)

    @torch.no_grad()
    def reorder_bands(self, order: Sequence[int]) -> None:
        """Let the first layer take its bands in another order.

        Args:
            order: for each band of the pictures its place among those of the weights.
        """
        for layer in first_layers(self.backbone):
            layer.weight.copy_(layer.weight[:, list(order)])
        if found := self.options.get("normalisation"):
            self.options["normalisation"] = {k: [v[i] for i in order] for k, v in found.items()}
            for layer in first_layers(self.backbone):
                _set_normalisation(layer, self.options["normalisation"])


def first_layers(backbone: nn.Module) -> list[Any]:
    """Return the convolutions of a timm model that take the bands, mostly a single one."""
    named: Any = getattr(backbone, "pretrained_cfg", {}).get("first_conv") or ()
    names = [named] if isinstance(named, str) else list(named)
    found = [module for name, module in backbone.named_modules() if name in names]
    return [m for m in found if isinstance(m, nn.Conv2d)] or list(_convolutions(backbone))[:1]


def _convolutions(backbone: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in backbone.modules() if isinstance(module, nn.Conv2d))


def _own_normalisation(backbone: Any, channels: int) -> Normalisation | None:
    """Return the mean and deviation that timm's weights were trained with, one for each band."""
    found = {key: backbone.pretrained_cfg.get(key) for key in ("mean", "std")}
    if any(value is None or len(value) != 3 for value in found.values()):
        return None
    return {key: dealt_out(values, channels) for key, values in found.items()}


def _changes(normalisation: Normalisation) -> bool:
    """Return whether pictures are other ones when they are normalised."""
    return any(normalisation["mean"]) or set(normalisation["std"]) != {1.0}


def _normalise_before(layer: nn.Module, normalisation: Normalisation) -> None:
    """Normalise what a layer takes; a hook, so that whatever calls the layer gets it.

    Folded into the weights, the padding at a border would be black in place of the mean colour.
    """
    _set_normalisation(layer, normalisation)
    layer.register_forward_pre_hook(_normalise)


def _set_normalisation(layer: nn.Module, normalisation: Normalisation) -> None:
    for key in ("mean", "std"):
        values = torch.tensor(normalisation[key], dtype=torch.float32)[:, None, None]
        layer.register_buffer(f"picture_{key}", values, persistent=False)  # (C, 1, 1)


def _normalise(layer: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    x, *others = inputs
    return ((x - layer.picture_mean) / layer.picture_std, *others)


def _create(name: str, channels: int, pretrained: bool, options: dict[str, Any]) -> Any:
    arguments = {"pretrained": pretrained, "in_chans": channels, "num_classes": 0, **options}
    if not timm.is_model(name):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = "see decur.encoders.list_encoders(); one of your own is package.module:name"
        if close:
            hint = f"did you mean {' or '.join(close)}?"
        raise ConfigError(f"no encoder {name!r}; {hint}")
    try:
        try:
            # A ViT has one input size. This lets it take others: crops differ from pictures.
            model = timm.create_model(name, dynamic_img_size=True, **arguments)
        except TypeError:
            model = timm.create_model(name, **arguments)
    except OSError as error:  # all that the hub and its clients raise without a network
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
