"""How a model is trained on labels; what is left open takes the paper's value for the task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from decur.errors import ConfigError

Schedule = Literal["steps", "poly", "constant"]


@dataclass
class FitSettings:
    """Optimiser, schedule and augmentation (DeCUR, appendix B.2); None: what the task has there.

    Classes and multilabels: SGD at 0.5 (frozen) or 0.05 (fine-tuned), no decay, 100 epochs, a
    tenth after 60 % and again after 80 % of them, crops of 0.8 to 1. Masks: AdamW at 1e-4, decay
    0.01, 30 epochs, constant, crops of 0.2 to 1. Scalars, which the paper has not: AdamW at 1e-3
    with the steps and crops of classes.

    Args:
        name: "sgd" or "adamw".
        lr: learning rate.
        weight_decay: of every parameter.
        momentum: of SGD.
        epochs: over the training part.
        steps: optimiser steps, in place of epochs.
        schedule: "steps", "poly" ((1 - done) ** 0.9, to 0) or "constant".
        milestones: shares of the run after each of which "steps" divides the rate by 10.
        augment: random resized crops and horizontal flips, the same for all sensors and the mask.
        crop: smallest and largest area of a crop, as shares of the picture.
        scales: in place of `crop`, for masks: factors, one of which each picture is enlarged by
            before a piece is cut out of it; what a shrunken one lacks is 0, its mask unknown (CMX).
        piece: height and width of that piece; None: the picture's own.
        warmup_epochs: in which the rate rises linearly to where the schedule goes on.

    Raises:
        ConfigError: for a number out of range.
    """

    name: Literal["sgd", "adamw"] | None = None
    lr: float | None = None
    weight_decay: float | None = None
    momentum: float = 0.9
    epochs: int | None = None
    steps: int | None = None
    schedule: Schedule | None = None
    milestones: tuple[float, ...] = (0.6, 0.8)
    augment: bool = True
    crop: tuple[float, float] | None = None
    scales: tuple[float, ...] = ()
    piece: tuple[int, int] | None = None
    warmup_epochs: float = 0.0

    def __post_init__(self) -> None:
        for key in ("lr", "weight_decay", "momentum", "warmup_epochs"):
            value = getattr(self, key)
            if value is not None and value < 0:
                raise ConfigError(f"fit.{key}: must not be negative, is {value:g}")
        for key in ("epochs", "steps"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"fit.{key}: must be 1 or more, is {value}")
        if self.crop is not None and not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ConfigError(f"fit.crop: needs 0 < low <= high <= 1, is {list(self.crop)}")
        if any(scale <= 0 for scale in self.scales):
            raise ConfigError(f"fit.scales: factors greater than 0, are {list(self.scales)}")
        if self.piece is not None and (min(self.piece) < 1 or not self.scales):
            raise ConfigError(
                f"fit.piece: height and width in pixels, with fit.scales, is {list(self.piece)}; "
                "set fit.scales, or leave it out"
            )

    def complete(self, kind: str, freeze: bool) -> FitSettings:
        """A copy in which nothing is left open.

        Args:
            kind: of the target: "class", "multilabel", "scalar" or "mask".
            freeze: whether the encoders stay as they are.

        Raises:
            ConfigError: for scales where there is no mask.
        """
        if self.scales and kind != "mask":
            raise ConfigError(f"fit.scales: are for masks, not for a {kind}; take fit.crop")
        defaults = dict(_PAPER[kind])
        if defaults["name"] == "sgd" and freeze:
            defaults["lr"] = 0.5
        if self.name is not None and self.name != defaults["name"]:  # rates of another optimiser
            defaults.update(_OTHER[self.name])
        return replace(self, **{k: v for k, v in defaults.items() if getattr(self, k) is None})

    def plain(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return asdict(self)


_CLASSES: dict[str, Any] = {
    **{"name": "sgd", "lr": 0.05, "weight_decay": 0.0, "epochs": 100},
    **{"schedule": "steps", "crop": (0.8, 1.0)},
}
_PAPER: dict[str, dict[str, Any]] = {
    "class": _CLASSES,
    "multilabel": _CLASSES,
    "scalar": {**_CLASSES, "name": "adamw", "lr": 1e-3, "weight_decay": 0.01},
    "mask": {
        **{"name": "adamw", "lr": 1e-4, "weight_decay": 0.01, "epochs": 30},
        **{"schedule": "constant", "crop": (0.2, 1.0)},
    },
}
_OTHER: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "weight_decay": 1e-5},  # the paper's FCN on RGB and depth
    "adamw": {"lr": 1e-4, "weight_decay": 0.01},
}
