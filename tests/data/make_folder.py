"""Tiny files in the layout of `PairedFolder`, for tests."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def write(path: Path, pixels: np.ndarray, nodata: float | None = None) -> Path:
    """Write (C, H, W) or (H, W) pixels in the format of the extension; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix in (".tif", ".tiff", ".jp2"):
        write_raster(path, pixels if pixels.ndim == 3 else pixels[None], nodata)
    else:
        pixels = pixels[0] if pixels.ndim == 3 and len(pixels) == 1 else pixels
        Image.fromarray(np.moveaxis(pixels, 0, -1) if pixels.ndim == 3 else pixels).save(path)
    return path


def write_raster(
    path: Path,
    pixels: np.ndarray,
    nodata: float | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write (C, H, W) pixels as a GeoTIFF, or lossless JPEG 2000."""
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    path.parent.mkdir(parents=True, exist_ok=True)
    lossless = {"REVERSIBLE": "YES", "QUALITY": "100"} if path.suffix == ".jp2" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(
            path,
            "w",
            driver="JP2OpenJPEG" if lossless else "GTiff",
            count=pixels.shape[0],
            height=pixels.shape[1],
            width=pixels.shape[2],
            dtype=pixels.dtype,
            nodata=nodata,
            **lossless,
        ) as target:
            target.write(pixels)
            for band, name in enumerate(names or (), start=1):
                target.set_band_description(band, name)
    return path


def make_folder(
    root: Path,
    ids: Mapping[str, Sequence[str]],
    size: int = 8,
    extension: str = ".png",
    bands: Mapping[str, int] | None = None,
) -> Path:
    """Make `root/<modality>/<id>` of random 8-bit pixels.

    Args:
        root: the folder.
        ids: `{modality: ids}`; an extension in an id goes before `extension`.
        size: height and width.
        extension: of the files.
        bands: `{modality: number}`, 1 by default.
    """
    rng = np.random.default_rng(0)
    for modality, names in ids.items():
        for name in names:
            shape = ((bands or {}).get(modality, 1), size, size)
            file = root / modality / (name if "." in name else name + extension)
            write(file, rng.integers(0, 255, shape, dtype=np.uint8))
    return root
