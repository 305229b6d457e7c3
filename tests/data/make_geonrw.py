"""Tiny files in the layout of GeoNRW, for tests: true names, types and CRS, smaller scenes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from make_raster import write_georeferenced


def make_geonrw(root: Path, cities: Sequence[str], scenes: int = 1, side: int = 128) -> Path:
    """Make scenes: land cover in blobs, with a colour and a height of its own.

    Args:
        root: the folder.
        cities: names, lower case.
        scenes: of each city.
        side: of a scene, in pixels; truly 1000.
    """
    rng = np.random.default_rng(0)
    for city in cities:
        for scene in range(scenes):
            blocks = rng.integers(0, 11, (8, 8))
            cover = np.kron(blocks, np.ones((side // 8, side // 8))).astype(np.uint8)
            photo = 20 * cover + rng.integers(0, 20, (4, side, side)).astype(
                np.uint8
            )  # with infrared
            dem = 60 + 3 * cover + rng.normal(0, 1, (side, side))
            east = 280 + scene
            for kind, pixels in (
                ("rgb.jp2", photo),
                ("dem.tif", dem[None].astype(np.float32)),
                ("seg.tif", cover[None]),
            ):
                file = root / city / f"{east}_5656_{kind}"
                write_georeferenced(file, pixels, 1000, "EPSG:25832", (1000 * east, 5_657_000))
    return root
