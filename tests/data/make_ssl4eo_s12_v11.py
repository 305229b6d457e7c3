"""Tiny files in the layout of SSL4EO-S12 v1.1, for tests: Zarr v2 in a zip, true names, types."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numcodecs
import numpy as np
import zarr

FOLDERS = {"s1": "S1GRD", "s2c": "S2L1C", "s2a": "S2L2A"}
S2C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
BANDS = {"s1": ("vv", "vh"), "s2c": S2C, "s2a": tuple(b for b in S2C if b != "B10")}
SEASONS = 4
SIDE = 264


def file_name(number: int, split: str = "train") -> str:
    return f"ssl4eos12_{split}_seasonal_data_{number:06d}.zarr.zip"


def mark(place: int) -> int:
    """A number that tells places apart and that float16 holds."""
    return place % 1000


def pixels(sensor: str, place: int, season: int, offset: int = 1000) -> np.ndarray:
    """What the maker writes: noise of the place and season, on a level of the band; (C, H, W).

    The first pixel is the season, the second the place's mark, over the offset in Sentinel-2.
    """
    rng = np.random.default_rng([place, season, len(BANDS[sensor])])
    levels = rng.uniform(0, 5, (len(BANDS[sensor]), 1, 1))
    noise = rng.standard_normal((SIDE, SIDE), np.float32)
    if sensor == "s1":
        image, base = -15 + levels + 2 * noise, 0
    else:
        image, base = offset + 400 + 20 * levels + 30 * noise, offset
    image[:, 0, 0], image[:, 0, 1] = base + season, base + mark(place)
    return image.astype(np.float16 if sensor == "s1" else np.int16)


def write_zarr_zip(path: Path, arrays: dict[str, np.ndarray], chunks: tuple[int, ...]) -> Path:
    """Zip a Zarr v2 group of arrays, compressed as xarray does; `chunks` are those of `bands`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        group = zarr.create_group(folder, zarr_format=2)
        for name, values in arrays.items():
            array = group.create_array(
                name,
                shape=values.shape,
                chunks=chunks if name == "bands" else values.shape,
                dtype=values.dtype,
                compressors=numcodecs.Blosc("lz4", 5, numcodecs.Blosc.SHUFFLE),
            )
            array[:] = values
        zarr.consolidate_metadata(folder, zarr_format=2)
        with zipfile.ZipFile(path, "w") as packed:
            for file in sorted(Path(folder).rglob("*")):
                if file.is_file():
                    packed.write(file, file.relative_to(folder))
    return path


def make_file(
    path: Path, sensor: str, places: Sequence[int], offset: int = 1000, chunk: int | None = None
) -> Path:
    """Make one file.

    Args:
        path: of the file.
        sensor: "s1", "s2c" or "s2a".
        places: their numbers, in the file's order.
        offset: that Sentinel-2 is shifted by.
        chunk: places in a chunk; by default all, as in the release.
    """
    n, rng = len(places), np.random.default_rng(0)
    bands = np.stack(
        [
            np.stack([pixels(sensor, place, season, offset) for season in range(SEASONS)])
            for place in places
        ]
    )
    arrays = {
        "bands": bands,
        "band": np.array(BANDS[sensor]),
        "sample": np.array([f"{place:07d}" for place in places]),
        "time": np.arange(SEASONS),
        "center_lat": rng.uniform(-60, 60, n),
        "center_lon": rng.uniform(-180, 180, n),
        "crs": np.full(n, 32633),
        "sample_id": np.array([[f"{p:07d}_{t}" for t in range(SEASONS)] for p in places]),
    }
    return write_zarr_zip(path, arrays, (chunk or n, 1, *bands.shape[2:]))


def make_ssl4eo_s12_v11(
    root: Path,
    files: Sequence[Sequence[int]],
    sensors: Sequence[str] = ("s1", "s2c"),
    split: str = "train",
    offset: int = 1000,
) -> Path:
    """Make the files of a split, each of some places, for each sensor."""
    for sensor in sensors:
        for number, places in enumerate(files, start=1):
            make_file(
                root / split / FOLDERS[sensor] / file_name(number, split), sensor, places, offset
            )
    return root
