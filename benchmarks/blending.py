"""How much a map depends on where its windows begin: `decur predict` over shifted windows.

    python benchmarks/blending.py runs/flood --scene s1=radar.tif s2=optical.tif
    python benchmarks/blending.py runs/flood --scene s1=FOLDER/s1 s2=FOLDER/s2 --side 6

The scene is mapped where it lies and moved by some pixels, which moves the windows over it, and the
pixels are counted whose class changes. Of folders the last `--side` x `--side` pictures are put
together. Windows of 256 px need a scene of 700 px or more, since those at its edges do not move:
`--mirror` puts a smaller one and its mirror images together.

The line `one piece` is what the network itself changes without any windows: the scene less 64 px in
a single window that begins elsewhere, seen 96 px or more from the edges.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin

from decur.data import LoaderSettings
from decur.data.files import read_image
from decur.predict import predict

MOVES = ((5, 5), (16, 16), (11, 3), (7, 20))  # pixels down and right
CUT, EDGE = 64, 96  # pixels that a single window may begin later; that are not compared
FORMER = {"overlap": 0.5, "shifts": 1}
Pictures = dict[str, NDArray[Any]]  # (C, H, W) of each sensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder of `decur transfer`, for masks")
    parser.add_argument("--scene", nargs="+", required=True, metavar="SENSOR=FILE")
    parser.add_argument("--side", type=int, default=6, help="pictures along a scene of pictures")
    parser.add_argument("--mirror", action="store_true", help="put mirror images beside the scene")
    parser.add_argument("--small", type=int, default=128, help="window that is compared, in pixels")
    args = parser.parse_args()
    torch.set_num_threads(1)
    scene = {}
    for word in args.scene:
        name, _, file = word.partition("=")
        scene[name] = read_scene(Path(file), args.side, args.mirror)
    height, width = next(iter(scene.values())).shape[-2:]
    print(f"scene {height} x {width}, changed pixels in % for windows moved by {MOVES}")
    alone = {"window": max(height, width), **FORMER, "overlap": 0.0}
    first, _ = mapped(args.model, cut(scene, (0, 0)), (0, 0), alone)
    changes = []
    for down, right in MOVES:
        moved, _ = mapped(args.model, cut(scene, (down, right)), (0, 0), alone)
        a, b = first[down:, right:], moved[: height - CUT - down, : width - CUT - right]
        changes.append(changed(a[EDGE:-EDGE, EDGE:-EDGE], b[EDGE:-EDGE, EDGE:-EDGE]))
    tell("one piece", changes, None)
    for options in (
        {"window": args.small, **FORMER},
        {"window": 256, **FORMER},
        {},
        {"shifts": 3, "overlap": 0.25},
        {"shifts": 1},
    ):
        first, seconds = mapped(args.model, scene, (0, 0), options)
        changes = [changed(first, mapped(args.model, scene, m, options)[0]) for m in MOVES]
        words = " ".join(f"--{key} {value:g}" for key, value in options.items())
        tell(words or "as it is by default", changes, seconds)


def read_scene(path: Path, side: int, mirror: bool) -> NDArray[Any]:
    """Return a raster, or the last pictures of a folder put together: (C, H, W)."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.is_file())[-(side**2) :]
        tiles = [read_image(file).numpy() for file in files]
        rows = [np.concatenate(tiles[at : at + side], axis=2) for at in range(0, side**2, side)]
        scene: NDArray[Any] = np.concatenate(rows, axis=1)
    else:
        with rasterio.open(path) as file:
            scene = file.read()
    if mirror:
        scene = np.concatenate([scene, scene[:, :, ::-1]], axis=2)
        scene = np.concatenate([scene, scene[:, ::-1]], axis=1)
    return scene


def cut(scene: Pictures, corner: tuple[int, int]) -> Pictures:
    """Return the scene less `CUT` pixels, from a corner on."""
    return {
        name: x[
            :, corner[0] : x.shape[1] - CUT + corner[0], corner[1] : x.shape[2] - CUT + corner[1]
        ]
        for name, x in scene.items()
    }


def mapped(
    model: str, scene: Pictures, move: tuple[int, int], options: dict[str, Any]
) -> tuple[NDArray[Any], float]:
    """Return the map of a scene that lies some pixels further down and right, and CPU seconds."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, pixels in scene.items():
            files[name] = Path(folder) / f"{name}.tif"
            bands, height, width = pixels.shape
            place = from_origin(500_000 + 10 * move[1], 5_000_000 - 10 * move[0], 10, 10)
            shape = {"count": bands, "height": height, "width": width, "dtype": pixels.dtype}
            layout = {"crs": "EPSG:32632", "transform": place, "tiled": True}
            with rasterio.open(files[name], "w", driver="GTiff", **shape, **layout) as file:
                file.write(pixels)
        start = time.process_time()
        out = str(Path(folder) / "map.tif")
        loader = LoaderSettings(batch_size=16, workers=0)
        found = predict(model, files, out=out, device="cpu", loader=loader, **options)
        seconds = time.process_time() - start
        with rasterio.open(found.path) as file:
            return file.read(1), seconds


def changed(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the share of pixels whose class differs, in percent."""
    return float(100 * (first != second).mean())


def tell(words: str, changes: list[float], seconds: float | None) -> None:
    each = " ".join(f"{change:5.2f}" for change in changes)
    took = "" if seconds is None else f"  {seconds:6.1f} s of CPU"
    print(f"{words:42} {each}  at most {max(changes):5.2f}{took}")


if __name__ == "__main__":
    main()
