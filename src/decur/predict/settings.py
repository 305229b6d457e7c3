"""What `decur predict` is to do."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from decur.data.loader import LoaderSettings
from decur.errors import PIXELS, ConfigError, check_ranges

_PART = re.compile(r"(\d{1,6})/(\d{1,6})")
_SHIFTS = 15  # at most
_BATCH = 16  # windows; a window is far larger than a picture of a training

FeatureBands = Literal["pca", "all"]


@dataclass
class PredictSettings:
    """Which part of a scene is mapped, how, and where the map goes.

    Args:
        out: Map to write, a .tif file, or for a data set a folder; None: map.tif, predictions.
        features: Map the features that the encoders see: all of them, or three principal
            components; None: what the model was trained to tell.
        probabilities: Write the probability of each class beside the classes; of a ridge a score
            from 0 to 1, which is no probability.
        bounds: Left, lower, right and upper edge of the map, in units of the reference sensor's
            CRS; None: all of the scene.
        resolution: Size of a pixel of the map, in units of the reference sensor's CRS; None: the
            sensor's own.
        part: Part of the map that is computed, as "i/n" for the i-th of n parts, for several
            machines; when all are there, a virtual raster joins them.
        window: Height and width of the windows that the model sees, in pixels of the map; None:
            those that it was trained on, and at least 256 where masks come from networks without
            attention.
        overlap: Share of a window that the next one covers, too; None: an eighth where there are
            several shifts, else a half.
        shifts: Odd number of grids of windows, each shifted by another part of a step of the
            network, whose predictions are averaged: 1 is a single grid. None: 5 where masks come
            from networks without attention, else 1.
        min_valid: Share of a window that a sensor must have measured to count as present; where
            none has, each with a measured pixel counts.
        tile: Height and width of the piece that is held in memory and kept as a file until the map
            is complete, in pixels of the map.
        loader: Windows in a batch, and reading processes.
        device: Device that the model runs on; "auto" takes the GPU where there is one.

    Raises:
        ConfigError: for a value out of range.
    """

    out: str | None = None
    features: FeatureBands | None = None
    probabilities: bool = False
    bounds: tuple[float, float, float, float] | None = None
    resolution: float | None = None
    part: str | None = None
    window: int | None = None
    overlap: float | None = None
    shifts: int | None = None
    min_valid: float = 0.5
    tile: int = 2048
    loader: LoaderSettings = field(default_factory=lambda: LoaderSettings(batch_size=_BATCH))
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        check_ranges(self, window=PIXELS, overlap=(0, 0.9), min_valid=(0, 1), tile=(64, 16_384))
        check_ranges(self, shifts=(1, _SHIFTS))
        if self.shifts is not None and self.shifts % 2 == 0:
            # of an even number some would lie whole steps of a finer feature map apart
            raise ConfigError(f"shifts: must be an odd number, is {self.shifts}")
        if self.resolution is not None and not 0 < self.resolution < math.inf:
            raise ConfigError(f"resolution: must be a number above 0, is {self.resolution:g}")
        if self.bounds is not None:
            west, south, east, north = self.bounds
            if not (-math.inf < west < east < math.inf and -math.inf < south < north < math.inf):
                raise ConfigError(
                    "bounds: left, lower, right and upper edge must be numbers that rise, are "
                    f"{west:.10g} {south:.10g} {east:.10g} {north:.10g}"
                )
        _ = self.number

    @property
    def number(self) -> tuple[int, int]:
        """Which part of how many, from 1: (1, 1) for the whole."""
        if self.part is None:
            return 1, 1
        found = _PART.fullmatch(self.part)
        which, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= which <= of:
            raise ConfigError(f"part: is i/n, such as 2/4, not {self.part!r}")
        return which, of
