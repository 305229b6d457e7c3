"""Tiny files in the layout of SUN RGB-D, for tests: true names and types, smaller pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np
from make_folder import write
from scipy.io import savemat

INTRINSICS = "529.500000 0.000000 {cx}\n0.000000 529.500000 {cy}\n0.000000 0.000000 1.000000\n"


def room(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Depth in whole millimetres, (H, W): a wall, a floor below it, and boxes before them."""
    height, width = size
    rows = np.arange(height)[:, None].clip(height // 2) - height // 2
    boxes = np.kron(rng.integers(0, 2, (8, 8)), np.ones((height // 8, width // 8)))
    depth = rng.integers(2500, 4000) - rows * 1500 / height - boxes * rng.integers(300, 900)
    return depth.astype(np.uint16)


def rotated(millimetres: np.ndarray) -> np.ndarray:
    """As the data set stores depth: each 16 bits rotated left by three."""
    return ((millimetres << 3) | (millimetres >> 13)).astype(np.uint16)


def make_sunrgbd(
    root: Path, scenes: Mapping[str, Sequence[str]], size: tuple[int, int] = (48, 64)
) -> Path:
    """Make scenes with labels in blocks, 0 (none) to 37.

    Args:
        root: the folder of both archives.
        scenes: `{"train" or "test": paths below SUNRGBD}`.
        size: of a picture; those of the second scene are larger by 8.
    """
    rng = np.random.default_rng(0)
    paths, labels, meta = {}, [], []
    for split, of_split in scenes.items():
        paths[split] = [f"/n/fs/sun3d/data/SUNRGBD/{scene}" for scene in of_split]
        for number, scene in enumerate(of_split):
            folder = root / "SUNRGBD" / scene
            own = (size[0] + 8, size[1] + 8) if number == 1 else size
            label = np.kron(rng.integers(0, 38, (8, 8)), np.ones((own[0] // 8, own[1] // 8)))
            label[0, :2] = 0, 37
            labels.append(label.astype(np.uint8))
            millimetres = room(rng, own)
            rgb = 6 * label + rng.integers(0, 20, (3, *own))
            write(folder / "image" / f"{number:07d}.jpg", rgb.astype(np.uint8))
            write(folder / "depth_bfx" / f"{number:07d}.png", rotated(millimetres))
            millimetres[:4, :4] = 0
            write(folder / "depth" / f"{number:07d}.png", rotated(millimetres))
            matrix = INTRINSICS.format(cx=own[1] / 2 + 1, cy=own[0] / 2 + 1)
            (folder / "intrinsics.txt").write_text(matrix)
            meta.append({"rgbpath": f"{paths[split][number]}//image/{number:07d}.jpg"})
    toolbox = root / "SUNRGBDtoolbox"
    for folder in ("Metadata", "traintestSUNRGBD"):
        (toolbox / folder).mkdir(parents=True)
    cells = {
        f"all{split}": np.array([[*paths.get(split, ["none"])]], dtype=object)
        for split in ("train", "test")
    }
    savemat(toolbox / "traintestSUNRGBD" / "allsplit.mat", cells)
    structure = np.array([tuple(one.values()) for one in meta], dtype=[("rgbpath", object)])
    savemat(toolbox / "Metadata" / "SUNRGBDMeta.mat", {"SUNRGBDMeta": structure[None]})
    with h5py.File(toolbox / "Metadata" / "SUNRGBD2Dseg.mat", "w", userblock_size=512) as file:
        references = file.create_dataset(
            "SUNRGBD2Dseg/seglabel", (len(labels), 1), dtype=h5py.ref_dtype
        )
        for row, label in enumerate(labels):
            references[row, 0] = file.create_dataset(f"#refs#/{row}", data=label.T).ref
    return root
