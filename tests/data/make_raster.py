"""Rasters with a place on earth, for tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin


def write_georeferenced(
    path: Path,
    pixels: np.ndarray,
    metres: float,
    crs: str = "EPSG:32633",
    corner: tuple[float, float] = (404400, 5342400),
    nodata: float | None = None,
) -> Path:
    """Write (H, W) or (C, H, W) pixels, as a GeoTIFF or lossless JPEG 2000.

    Args:
        path: .tif or .jp2.
        pixels: of any type.
        metres: that they cover from north to south.
        crs: the map projection; by default UTM zone 33N.
        corner: the upper left one, east and north in metres.
        nodata: the value that the file declares to be no measurement.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    bands, height, width = pixels.shape
    step = metres / height
    jp2 = {"driver": "JP2OpenJPEG", "REVERSIBLE": "YES", "QUALITY": "100"}
    kind = jp2 if path.suffix == ".jp2" else {"driver": "GTiff"}
    shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    shape |= {"nodata": nodata}
    place = rasterio.Affine(step, 0, corner[0], 0, -step, corner[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(path, "w", **kind, **shape, crs=crs, transform=place) as target:
        target.write(pixels)
    return path


WEST, NORTH, UTM = 500_000.0, 5_000_000.0, "EPSG:32632"  # of rasters of a scene


def write_placed(path, pixels, west=WEST, north=NORTH, pixel=10.0, crs=UTM, **options) -> Path:
    """Write (H, W) or (C, H, W) pixels as a GeoTIFF whose upper left corner lies at a place."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    shape = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2]}
    place = {"crs": crs, "transform": from_origin(west, north, pixel, pixel)}
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {**shape, **place, "dtype": pixels.dtype, **options}
    with rasterio.open(path, "w", driver="GTiff", **options) as file:
        file.write(pixels)
    return path
