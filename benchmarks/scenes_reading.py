"""Reading windows of large scenes: `PairedScenes` against the same windows as tile files.

    python benchmarks/scenes_reading.py                      # 20,000 x 20,000 pixels at 1 m
    python benchmarks/scenes_reading.py --size 4000 --pairs 200

Two tiled GeoTIFFs (3 bands of 8 bits, 2 bands of float32) are written to a temporary folder.
Windows are drawn from all of the data set's and read in this order on one thread; the same windows
as one file a sensor are read by `PairedFolder`. Rounds alternate, with a warm page cache, and
medians count. The memory is the peak of a reading process of its own, with Python and PyTorch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from decur.data import PairedDataset, PairedFolder, PairedScenes

SENSORS = {"optical": (3, "uint8"), "radar": (2, "float32")}
MODALITIES = {
    "optical": {"bands": ["red", "green", "blue"], "scaling": "range"},
    "radar": {"bands": ["VV", "VH"], "scaling": "range", "value_range": [0, 255]},
}
WINDOW = 256
PLACE = {"crs": "EPSG:32632"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000, help="height and width of a scene")
    parser.add_argument("--pairs", type=int, default=500, help="windows that are read")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block", type=int, default=256, help="pixels along a tile of GeoTIFF")
    parser.add_argument("--compress", default="deflate", help="of GeoTIFF, or none")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        layout = {"tiled": True, "blockxsize": args.block, "blockysize": args.block}
        for name in SENSORS:
            write_scene(root / "scenes" / name / "scene.tif", name, args, layout)
        start = time.perf_counter()
        scenes = PairedScenes(root / "scenes", MODALITIES, window=WINDOW)
        print(f"opened in {time.perf_counter() - start:.1f} s: {len(scenes)} windows")
        rng = np.random.default_rng(0)
        rows = rng.choice(len(scenes), min(args.pairs, len(scenes)), replace=False).tolist()
        write_tiles(root, scenes, rows, args.compress)
        tiles = PairedFolder(root / "tiles", MODALITIES)
        same = {id_: row for row, id_ in enumerate(tiles.ids)}
        order = [same[scenes.ids[row]] for row in rows]
        rates: dict[str, list[float]] = {"PairedScenes": [], "tile files": []}
        for _ in range(args.rounds):
            rates["PairedScenes"].append(rate(scenes, rows))
            rates["tile files"].append(rate(tiles, order))
        found = {name: statistics.median(of) for name, of in rates.items()}
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, most = pool.apply(memory, (root / "scenes", rows))
    for name, value in found.items():
        print(f"{name:<14}{value:8.0f} pairs/s")
    print(f"{'ratio':<14}{found['PairedScenes'] / found['tile files']:8.2f}")
    print(f"{'memory':<14}{most:8.0f} MB at most, {before:.0f} MB before the data set is opened")


def write_scene(path: Path, name: str, args: argparse.Namespace, layout: dict[str, Any]) -> None:
    """Write a scene block by block: waves with noise, which compress as pictures do."""
    bands, dtype = SENSORS[name]
    path.parent.mkdir(parents=True)
    profile = {
        "driver": "GTiff",
        "count": bands,
        "height": args.size,
        "width": args.size,
        "dtype": dtype,
        "transform": from_origin(500_000, 5_000_000, 1, 1),
        "compress": args.compress,
        "BIGTIFF": "IF_SAFER",
        "ZLEVEL": 1,
    }
    height = 4 * args.block
    y, x = np.mgrid[:height, : args.size].astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 4, (bands, height, args.size)).astype(np.float32)
    strip = (120 + 80 * np.sin(x / 90) * np.cos(y / 70) + noise).round().clip(0, 255).astype(dtype)
    with rasterio.open(path, "w", **profile, **PLACE, **layout) as file:
        for top in range(0, args.size, height):
            rows = min(height, args.size - top)
            shifted = np.roll(strip, top // 3, axis=2)[:, :rows]  # (C, rows, size)
            file.write(shifted, window=Window(0, top, args.size, rows))


def write_tiles(root: Path, scenes: PairedScenes, rows: list[int], compress: str) -> None:
    """Write windows as one file a sensor."""
    for name, (bands, dtype) in SENSORS.items():
        (root / "tiles" / name).mkdir(parents=True)
        for row in rows:
            with rasterio.open(
                root / "tiles" / name / f"{scenes.ids[row]}.tif",
                "w",
                driver="GTiff",
                count=bands,
                height=WINDOW,
                width=WINDOW,
                dtype=dtype,
                transform=scenes.place(row).affine,
                compress=compress,
                **PLACE,
            ) as file:
                file.write(scenes[row]["images"][name].numpy())


def rate(data: PairedDataset, rows: list[int]) -> float:
    """Return the pairs that are read in a second."""
    start = time.perf_counter()
    for row in rows:
        data[row]
    return len(rows) / (time.perf_counter() - start)


def memory(root: Path, rows: list[int]) -> tuple[float, float]:
    """Return the peak memory of this process in MB before and after it reads windows."""
    before = peak()
    scenes = PairedScenes(root, MODALITIES, window=WINDOW)
    for row in rows:
        scenes[row]
    return before, peak()


def peak() -> float:
    """Return the largest memory that this program has had, in MB; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1000 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
