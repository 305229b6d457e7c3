"""From what is predicted to the pixels of a map: classes, probabilities, numbers, features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from decur.plotting import class_colours
from decur.predict.model import Predictor
from decur.predict.raster_files import MapLayout, class_tags

_SMALL = 255  # classes up to which a byte suffices; the value itself means that nothing was seen
Means = NDArray[np.float32]  # (bands, H, W)
Known = NDArray[np.bool_]  # (H, W)


def map_layout(predictor: Predictor, tags: dict[str, str]) -> MapLayout:
    """Return what the pixels of the map are: a class, a flag for each label, or numbers."""
    classes = predictor.classes
    if predictor.says == "class":
        small = len(classes) <= _SMALL
        return MapLayout(
            dtype="uint8" if small else "uint16",
            nodata=255 if small else 65535,
            bands=("class",),
            classes=classes,
            colours=tuple(class_colours(len(classes))) if small else (),
            tags={**tags, **class_tags(classes)},
        )
    if predictor.says == "flags":
        return MapLayout(dtype="uint8", nodata=255, bands=predictor.bands, tags=tags)
    return MapLayout(dtype="float32", nodata=np.nan, bands=predictor.bands, tags=tags)


def probability_layout(predictor: Predictor, tags: dict[str, str]) -> MapLayout:
    """Return what the pixels of the probabilities are: one band for each class."""
    return MapLayout(dtype="float32", nodata=np.nan, bands=predictor.bands, tags=tags)


def map_pixels(predictor: Predictor, layout: MapLayout, mean: Means, known: Known) -> NDArray[Any]:
    """Return the pixels of a map.

    Args:
        predictor: whose predictions they are.
        layout: of the map.
        mean: (bands, H, W) blended predictions.
        known: (H, W) where something was seen.

    Returns:
        (bands of the layout, H, W).
    """
    if predictor.says == "class":
        values = mean.argmax(axis=0)[None]  # (1, H, W)
    elif predictor.says == "flags":
        values = mean > 0.5  # (bands, H, W)
    else:
        values = mean
    return np.where(known, values, layout.nodata).astype(layout.dtype)


def probability_pixels(mean: Means, known: Known) -> NDArray[np.float32]:
    """Return the probabilities of each class, NaN where nothing was seen: (bands, H, W)."""
    return np.where(known, mean, np.float32(np.nan))
