"""Reading pairs of GeoTIFF: `PairedFolder` against plain rasterio on the same files.

    python benchmarks/reading.py                  # 200 pairs of 2 float32 + 13 uint16 bands, 264 px
    python benchmarks/reading.py --pairs 64 --size 120

Both read every pair in the same order on one thread, with a warm page cache; rounds alternate and
medians count. Plain rasterio opens each file, reads all bands and makes a float32 tensor: no mask,
nodata, scale, orientation or size is looked at.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
import torch
from torch import Tensor

from decur.data import PairedFolder
from decur.modality import PRESETS

SENSORS = {"s1": ("sentinel1", "float32"), "s2": ("sentinel2-l1c", "uint16")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=200)
    parser.add_argument("--size", type=int, default=264, help="height and width in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=rasterio.errors.NotGeoreferencedWarning)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pairs(root, args.pairs, args.size)
        data = PairedFolder(root, {name: preset for name, (preset, _) in SENSORS.items()})
        files = [[root / name / f"{id_}.tif" for name in SENSORS] for id_ in data.ids]
        check_equal(data, files)
        ours = lambda row: data[row]["images"]  # noqa: E731
        plain = lambda row: [read_plain(file) for file in files[row]]  # noqa: E731
        rates = measure({"PairedFolder": ours, "rasterio": plain}, args.pairs, args.rounds)
    for name, rate in rates.items():
        print(f"{name:<14}{rate:8.0f} pairs/s")
    print(f"{'ratio':<14}{rates['PairedFolder'] / rates['rasterio']:8.2f}")


def write_pairs(root: Path, pairs: int, size: int) -> None:
    """Write pairs as rasterio does by default: uncompressed strips, on a map of 10 m."""
    rng = np.random.default_rng(0)
    for name, (preset, dtype) in SENSORS.items():
        (root / name).mkdir()
        bands = PRESETS[preset].channels
        for row in range(pairs):
            pixels = rng.uniform(1, 4000, (bands, size, size)).astype(dtype)
            with rasterio.open(
                root / name / f"{row:05d}.tif",
                "w",
                driver="GTiff",
                count=bands,
                height=size,
                width=size,
                dtype=dtype,
                crs="EPSG:32632",
                transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
            ) as target:
                target.write(pixels)


def read_plain(file: Path) -> Tensor:
    with rasterio.open(file) as source:
        return torch.from_numpy(source.read().astype(np.float32))


def check_equal(data: PairedFolder, files: list[list[Path]]) -> None:
    for name, file in zip(SENSORS, files[0], strict=True):
        assert torch.equal(data[0]["images"][name], read_plain(file)), name


def measure(
    readers: dict[str, Callable[[int], object]], pairs: int, rounds: int
) -> dict[str, float]:
    """Return the median rate of each reader in pairs a second."""
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            start = time.perf_counter()
            for row in range(pairs):
                read(row)
            rates[name].append(pairs / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


if __name__ == "__main__":
    main()
