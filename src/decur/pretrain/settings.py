"""What a pretraining run can be told, besides its data and its objective; each field is a key."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from decur.errors import ConfigError
from decur.modality import Modality

if TYPE_CHECKING:
    from decur.encoders import Encoder


def _check(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass
class EncoderSettings:
    """The backbone, one for each modality.

    Args:
        name: a timm CNN or ViT with feature maps, for all modalities or as `{modality: name}`.
        pretrained: start from timm's weights instead of from scratch (downloads them).
        attention: what follows the last two stages of a CNN ("rda", "da", "cbam" or "cross_da",
            from sensor to sensor), or each stage, as `{layer3: rda, layer4: rda}`.
        options: further arguments of `decur.encoders.build_encoder`, which hands them to timm.
        checkpointing: compute activations again in the backward pass in place of keeping them:
            a third more work, and memory for larger encoders or batches; the same result.
    """

    name: dict[str, str] | str = "resnet50"  # written as the first type that fits
    pretrained: bool = False
    attention: dict[str, str] | str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False

    def build(self, name: str, modality: Modality) -> Encoder:
        """The encoder for one modality.

        Raises:
            ConfigError: naming what there is not.
        """
        from decur.encoders import build_encoder
        from decur.encoders.checkpointing import checkpoint_activations

        options: dict[str, Any] = {"pretrained": self.pretrained}
        options |= {"attention": self.attention} if self.attention else {}
        for key in self.options:
            twice = key in options or key in ("name", "modality")
            _check(not twice, f"encoder.options.{key}: is encoder.{key}; give it there")
        encoder = build_encoder(self.of(name), modality, **options, **self.options)
        if self.checkpointing:
            checkpoint_activations(encoder)
        return encoder

    def of(self, modality: str) -> str:
        """The architecture for one modality."""
        if isinstance(self.name, str):
            return self.name
        _check(modality in self.name, f"encoder.name: names no encoder for modality {modality!r}")
        return self.name[modality]


@dataclass
class ProjectorSettings:
    """The projector, one for each modality.

    Args:
        width: of every layer and of the embedding, K in the paper.
        layers: 3 in the paper; 0 for none (the embedding is the encoder's vector).
    """

    width: int = 8192
    layers: int = 3


@dataclass
class ViewSettings:
    """The two augmented views of each modality.

    Args:
        size: height and width of a view in pixels.
        shared_geometry: give all modalities of a sample the same crop and flips.
        augment: changes to the augmentation recipes, as `{modality or all: {parameter: value}}`.
    """

    size: int = 224
    shared_geometry: bool = False
    augment: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass
class OptimizerSettings:
    """The optimiser and its schedule (DeCUR, appendix B.1).

    Args:
        name: "lars" for ConvNets, "adamw" for transformers.
        lr: of the weights; None: 0.2 for LARS, 1e-4 for AdamW.
        lr_bias: of biases and normalisation parameters, which have no LARS adaptation and no
            decay; None: 0.0048 for LARS, `lr` for AdamW.
        weight_decay: None: 1e-6 for LARS, 0.01 for AdamW.
        momentum: of LARS.
        warmup_epochs: linear warm-up; none in the paper.
        scale_lr: multiply the learning rates by batch size / 256.
    """

    name: Literal["lars", "adamw"] = "lars"
    lr: float | None = None
    lr_bias: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    warmup_epochs: float = 0.0
    scale_lr: bool = False

    def __post_init__(self) -> None:
        for key in ("lr", "lr_bias", "weight_decay", "momentum", "warmup_epochs"):
            value = getattr(self, key)
            _check(value is None or value >= 0, f"optimizer.{key}: must not be negative")

    def rates(self) -> tuple[float, float, float]:
        """Learning rates of weights and of the rest, and weight decay, defaults filled in."""
        lr, lr_bias, decay = _RATES[self.name]
        lr = lr if self.lr is None else self.lr
        lr_bias = lr_bias or lr  # AdamW adapts each parameter itself: one rate for all
        lr_bias = lr_bias if self.lr_bias is None else self.lr_bias
        return lr, lr_bias, decay if self.weight_decay is None else self.weight_decay


_RATES = {"lars": (0.2, 0.0048, 1e-6), "adamw": (1e-4, None, 0.01)}  # DeCUR, appendix B.1


@dataclass
class LoaderSettings:
    """How samples reach the device.

    Args:
        batch_size: samples in a batch, over all processes together: the same configuration gives
            the same result on one device and on many.
        workers: reading processes on each device's host; None: up to 8, one less than the cores.
        max_bad: share of the data set that may turn out unreadable before the run stops.
    """

    batch_size: int = 256
    workers: int | None = None
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        _check(self.batch_size >= 2, "loader.batch_size: must be 2 or more")
        _check((self.workers or 0) >= 0, "loader.workers: must not be negative")
        _check(0 <= self.max_bad <= 1, f"loader.max_bad: a share in [0, 1], is {self.max_bad}")

    def processes(self) -> int:
        """Reading processes, the default filled in."""
        default = min(8, max(1, (os.cpu_count() or 1) - 1))
        return default if self.workers is None else self.workers


@dataclass
class MonitorSettings:
    """What is watched while training.

    Args:
        every_epochs: how often ranks and probes are computed; 0: never.
        samples: how many samples, without augmentation, they are computed on.
        batches: how many batches of each epoch the correlations are computed on.
        min_rank: effective rank of an encoder's features below which a run counts as collapsed.
    """

    every_epochs: int = 1
    samples: int = 512
    batches: int = 16
    min_rank: float = 1.5

    def __post_init__(self) -> None:
        _check(self.every_epochs >= 0, "monitor.every_epochs: must not be negative")
        for key in ("samples", "batches"):
            _check(getattr(self, key) >= 1, f"monitor.{key}: must be 1 or more")


@dataclass
class CheckpointSettings:
    """When the whole state is saved, besides at the end of each epoch.

    Args:
        every_minutes: time between checkpoints within an epoch.
        keep: how many are kept; the one before the last is what a damaged last one falls back to.
    """

    every_minutes: float = 15.0
    keep: int = 2

    def __post_init__(self) -> None:
        _check(self.keep >= 1, "checkpoint.keep: must be 1 or more")
