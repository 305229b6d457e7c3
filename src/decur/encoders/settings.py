"""Settings of encoders: which one each sensor gets."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from decur.errors import require
from decur.memory import require_memory_for_options
from decur.modality import Modality

if TYPE_CHECKING:
    from decur.encoders.base import Encoder

log = logging.getLogger(__name__)
MissingBands = Literal["refuse", "empty"]  # what becomes of data without some of an encoder's bands


@dataclass
class EncoderSettings:
    """The backbone, one for each modality.

    Args:
        name: A timm CNN or ViT with feature maps, for all modalities or as `{modality: name}`.
        pretrained: Start from timm's weights instead of from scratch (downloads them).
        attention: Attention after the last two stages of a CNN ("rda", "da", "cbam" or "cross_da",
            from sensor to sensor), or after each stage, as `{layer3: rda, layer4: rda}`.
        geometry: Place where the points of "rda", "da" and "cross_da" start: "dat", as in DAT++,
            which the paper follows, or "centred", as in version 0.1.
        options: Further arguments of `decur.encoders.build_encoder`, which hands them to timm.
        checkpointing: Compute activations again in the backward pass in place of keeping them: a
            third more work, and memory for larger encoders or batches; the same result.
        weights: Weights to start from: an encoder file, the folder of a run, "timm:NAME",
            "torchgeo:NAME" or "hf-hub:USER/REPO", for all modalities or as `{modality: SOURCE}`;
            bands are matched by name.
    """

    name: dict[str, str] | str = "resnet50"  # written as the first type that fits
    pretrained: bool = False
    attention: dict[str, str] | str | None = None
    geometry: Literal["dat", "centred"] = "dat"
    options: dict[str, Any] = field(default_factory=dict)
    checkpointing: bool = False
    weights: dict[str, str] | str | None = None

    def build(self, name: str, modality: Modality) -> Encoder:
        """Return the encoder of one modality.

        Raises:
            ConfigError: naming what there is not.
        """
        from decur.encoders.build import build_encoder  # timm takes seconds to import
        from decur.encoders.checkpointing import checkpoint_activations
        from decur.encoders.timm_models import STARTS_FROM

        options: dict[str, Any] = {"pretrained": self.pretrained}
        if self.attention:
            options |= {"attention": self.attention, "geometry": self.geometry}
        for key in self.options:
            twice = key in options or key in ("name", "modality")
            require(not twice, f"encoder.options.{key}: is encoder.{key}; give it there")
        sized = {key: self.options[key] for key in self.options if key not in STARTS_FROM}
        require_memory_for_options(
            partial(build_encoder, self.of(name), modality, **sized),
            name=self.of(name),
            options=sized,
        )
        if source := self._weights_of(name):
            require(not self.pretrained, "encoder.pretrained: leave it out beside encoder.weights")
        encoder = build_encoder(self.of(name), modality, **options, **self.options)
        if source:
            from decur.encoders.continued import start_from

            start_from(encoder, source)
        if self.checkpointing:
            checkpoint_activations(encoder)
        return encoder

    def tell_unused(self, modalities: Collection[str]) -> None:
        """Say which sensors the settings name that are not there, as a wrong name has no effect."""
        for key, given in (("name", self.name), ("weights", self.weights)):
            unused = (
                [name for name in given if name not in modalities]
                if isinstance(given, Mapping)
                else []
            )
            if unused:
                log.warning(
                    "encoder.%s: %s of no use, as the sensors are %s",
                    key,
                    f"{', '.join(unused)} {'is' if len(unused) == 1 else 'are'}",
                    ", ".join(modalities),
                )

    def _weights_of(self, modality: str) -> str | None:
        """Return where the weights of one modality come from; None: it starts from scratch."""
        if isinstance(self.weights, Mapping):
            return self.weights.get(modality)
        return self.weights

    def of(self, modality: str) -> str:
        """Return the architecture for one modality."""
        if isinstance(self.name, str):
            return self.name
        require(modality in self.name, f"encoder.name: names no encoder for modality {modality!r}")
        return self.name[modality]
