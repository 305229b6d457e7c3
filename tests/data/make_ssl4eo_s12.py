"""Tiny files in the layout of SSL4EO-S12 v1.0, for tests: true names, sizes, types and CRS."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from make_raster import write_georeferenced

FINE, MIDDLE, COARSE = 264, 132, 44  # pixels of a band of 10, 20 and 60 m along 2,640 m
S2C = {
    "B1": COARSE,
    **dict.fromkeys(("B2", "B3", "B4"), FINE),
    **dict.fromkeys(("B5", "B6", "B7"), MIDDLE),
    **{"B8": FINE, "B8A": MIDDLE, "B9": COARSE, "B10": COARSE, "B11": MIDDLE, "B12": MIDDLE},
}
BANDS = {
    "s1": {"VV": FINE, "VH": FINE},
    "s2c": S2C,
    "s2a": {band: side for band, side in S2C.items() if band != "B10"},
}
DAYS = ("20200612", "20200914", "20201205", "20210310")  # the four seasons of a place


def product_name(sensor: str, day: str) -> str:
    """As Google Earth Engine names the products."""
    if sensor == "s1":
        return f"S1A_IW_GRDH_1SDV_{day}T165043_{day}T165108_017018_01C579_7EEC"
    return f"{day}T101031_{day}T101608_T33UUP"


def make_ssl4eo_s12(
    root: Path, places: Mapping[str, Sequence[int]], days: Sequence[str] = DAYS
) -> Path:
    """Make places whose first pixel of VV, or of B2, tells the season: its number from 0.

    Args:
        root: the folder.
        places: `{sensor: numbers}`.
        days: of the products of each place.
    """
    rng = np.random.default_rng(0)
    for sensor, numbers in places.items():
        for number in numbers:
            for season, day in enumerate(days):
                folder = root / sensor / f"{number:07d}" / product_name(sensor, day)
                for band, side in BANDS[sensor].items():
                    if sensor == "s1":
                        pixels = rng.normal(-12, 5, (side, side)).astype(np.float32)
                    else:
                        pixels = rng.normal(800, 100, (side, side)).clip(1).astype(np.uint16)
                    pixels[0, 0] = season
                    write_georeferenced(folder / f"{band}.tif", pixels, 2640)
                (folder / "metadata.json").write_text("{}")  # as the release has beside the bands
    return root
