"""Memory and time of `decur predict` on a large scene of two sensors.

    python benchmarks/mapping.py                      # 20,000 x 20,000 pixels, a fiftieth measured
    python benchmarks/mapping.py --size 4000 --measured 1
    python benchmarks/mapping.py --measured 1 --encoder mobilenetv3_small_100 --workers 0

Two tiled GeoTIFFs (3 bands of 8 bits, 2 bands of float32) are written to a temporary folder and
mapped by a network of fresh weights. Only their first rows hold measurements, since the rest is
quick to map and takes the same memory, which is the peak of the command and its reading processes
together, pages that they share counted once; Linux only. Other options go to `decur predict`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin
from rasterio.windows import Window

from decur.encoders import build_encoder
from decur.modality import Modality
from decur.transfer.heads import build_model, save_model

SENSORS = {"optical": (3, "uint8"), "radar": (2, "float32")}
ROWS = 256  # that are written at once


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=20_000, help="height and width of the scene")
    parser.add_argument("--measured", type=float, default=0.02, help="share of the scene")
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--workers", type=int, default=1, help="reading processes")
    args, others = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in SENSORS:
            write_scene(root / f"{name}.tif", name, args.size, args.measured)
        write_model(root / "model" / "model.safetensors", args.encoder)
        scene = [f"{name}={root / f'{name}.tif'}" for name in SENSORS]
        options = ["--out", str(root / "map.tif"), "--loader.workers", str(args.workers), *others]
        command = ["predict", str(root / "model"), "--scene", *scene, *options]
        start, most = time.perf_counter(), 0.0
        with subprocess.Popen([sys.executable, "-m", "decur", *command]) as process:
            while process.poll() is None:
                most = max(most, memory(process.pid))
                time.sleep(2)
        if process.returncode:
            sys.exit(process.returncode)
        print(f"time      {time.perf_counter() - start:6.0f} s")
        print(f"memory    {most:6.0f} MB at most, {args.workers} reading processes included")
        print(f"map       {(root / 'map.tif').stat().st_size / 1e6:6.1f} MB")


def write_scene(path: Path, name: str, size: int, measured: float) -> None:
    """Write a scene whose first rows are noise, and the rest nodata."""
    bands, dtype = SENSORS[name]
    profile = {"count": bands, "height": size, "width": size, "dtype": dtype, "nodata": 0}
    place = {"crs": "EPSG:32632", "transform": from_origin(500_000, 5_000_000, 1, 1)}
    layout = {"tiled": True, "compress": "deflate", "zlevel": 1, "sparse_ok": True}
    noise = np.random.default_rng(0).integers(1, 255, (bands, ROWS, size)).astype(dtype)
    with rasterio.open(path, "w", driver="GTiff", **profile, **place, **layout) as file:
        for top in range(0, round(size * measured), ROWS):
            part = noise[:, : size - top]
            file.write(part, window=Window(0, top, size, part.shape[1]))


def write_model(path: Path, encoder: str) -> None:
    """Write a model of five classes with fresh weights."""
    encoders = {}
    for name, (bands, _) in SENSORS.items():
        modality = Modality(
            name=name,
            bands=tuple(f"band{band + 1}" for band in range(bands)),
            scaling="range",
            value_range=(0, 255),
            size=(256, 256),
        )
        encoders[name] = build_encoder(encoder, modality).eval()
    header = {"target": "cover", "kind": "mask", "classes": list("abcde"), "size": None}
    path.parent.mkdir()
    save_model(build_model("fcn", encoders, 5), path, header)


def memory(parent: int) -> float:
    """Return the memory of a process and of those that it started, in MB."""
    total, left = 0.0, [parent]
    while left:
        folder = Path(f"/proc/{left.pop()}")
        try:
            for thread in (folder / "task").iterdir():
                left += map(int, (thread / "children").read_text().split())
            lines = (folder / "smaps_rollup").read_text().splitlines()
        except OSError:  # it has ended
            continue
        total += next(int(line.split()[1]) / 1000 for line in lines if line.startswith("Pss:"))
    return total


if __name__ == "__main__":
    main()
