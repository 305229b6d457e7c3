"""What `decur embed` is to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from decur.data.loader import LoaderSettings
from decur.encoders.settings import EncoderSettings
from decur.errors import PIXELS, SEEDS, check_ranges


@dataclass
class EmbedSettings:
    """Which encoders embed what, and where the rows go.

    Args:
        out: Folder to write.
        modalities: Sensors to use; None for all of the data that there is an encoder for.
        projector: Compute the embedding besides the features.
        missing_bands: What is done about bands of an encoder that the data lacks: "empty" takes
            them as 0 in every scaled picture, or as their mean where the encoder normalises
            pictures; the bands of the data are found by name.
        encoder: Architecture of fresh weights.
        loader: Batches, workers and the tolerance of bad samples.
        size: Height and width in pixels that pictures are resized to; None for their own.
        seed: Seed of fresh weights.
    """

    out: str = "embeddings"
    modalities: list[str] | None = None
    projector: bool = True
    missing_bands: Literal["refuse", "empty"] = "refuse"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, size=PIXELS, seed=SEEDS)
