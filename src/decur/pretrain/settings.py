"""What a pretraining run can be told, besides its data and its objective; each field is a key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from decur.errors import require


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
            require(value is None or value >= 0, f"optimizer.{key}: must not be negative")

    def rates(self) -> tuple[float, float, float]:
        """Learning rates of weights and of the rest, and weight decay, defaults filled in."""
        lr, lr_bias, decay = _RATES[self.name]
        lr = lr if self.lr is None else self.lr
        lr_bias = lr_bias or lr  # AdamW adapts each parameter itself: one rate for all
        lr_bias = lr_bias if self.lr_bias is None else self.lr_bias
        return lr, lr_bias, decay if self.weight_decay is None else self.weight_decay


_RATES = {"lars": (0.2, 0.0048, 1e-6), "adamw": (1e-4, None, 0.01)}  # DeCUR, appendix B.1


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
        require(self.every_epochs >= 0, "monitor.every_epochs: must not be negative")
        for key in ("samples", "batches"):
            require(getattr(self, key) >= 1, f"monitor.{key}: must be 1 or more")


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
        require(self.keep >= 1, "checkpoint.keep: must be 1 or more")
