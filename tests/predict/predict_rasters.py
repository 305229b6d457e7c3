"""Rasters of a small place, and the sensors that see it."""

import numpy as np
import rasterio
from rasterio.transform import from_origin

from decur.modality import Modality

WEST, NORTH, PIXEL, UTM = 500_000.0, 5_000_000.0, 10.0, "EPSG:32632"
SENSORS = {
    "s1": Modality(name="s1", bands=("VV",), scaling="range", value_range=(0, 1000), size=(32, 32)),
    "s2": Modality(
        name="s2", bands=("r", "g"), scaling="range", value_range=(0, 1000), size=(32, 32)
    ),
}


def write_raster(path, pixels, west=WEST, north=NORTH, pixel=PIXEL, crs=UTM, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(pixels),
        height=pixels.shape[1],
        width=pixels.shape[2],
        dtype=pixels.dtype,
        crs=crs,
        transform=options.pop("transform", None) or from_origin(west, north, pixel, pixel),
        **options,
    ) as file:
        file.write(pixels)
    return path


def noise(bands, height, width, seed=0):
    """Blobs of a few pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(0, 1000, (bands, height // 4 + 1, width // 4 + 1))
    return np.kron(coarse, np.ones((4, 4)))[:, :height, :width].astype(np.float32)
