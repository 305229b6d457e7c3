"""Tiny files in the layout of NYU-Depth v2, for tests: true names, axes and types."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from make_sunrgbd import room
from scipy.io import savemat


def make_nyu(
    root: Path, train: Sequence[int], test: Sequence[int], size: tuple[int, int] = (48, 64)
) -> Path:
    """Make pictures numbered from 1, two a scene, with labels in blocks, 0 (none) to 894.

    Args:
        root: the folder.
        train: numbers of pictures for training.
        test: numbers of the others.
        size: of a picture; truly 480 x 640.
    """
    rng = np.random.default_rng(0)
    count = len(train) + len(test)
    root.mkdir(parents=True, exist_ok=True)
    blocks = rng.integers(0, 895, (count, 8, 8))
    blocks[:, 0, :2] = 0, 894
    labels = np.kron(blocks, np.ones((1, size[0] // 8, size[1] // 8))).astype(np.uint16)
    depths = np.stack([room(rng, size) for _ in range(count)]).astype(np.float32) / 1000
    raw = depths.copy()
    raw[:, :4, :4] = 0
    images = (labels[:, None] % 200 + rng.integers(0, 50, (count, 3, *size))).astype(np.uint8)
    with h5py.File(root / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        for name, pixels in (
            ("images", images),
            ("depths", depths),
            ("rawDepths", raw),
            ("labels", labels),
        ):
            file[name] = pixels.swapaxes(-1, -2)
        scenes = file.create_dataset("scenes", (1, count), dtype=h5py.ref_dtype)
        for row in range(count):
            text = np.frombuffer(f"kitchen_{row // 2:04d}".encode("utf-16-le"), np.uint16)
            scenes[0, row] = file.create_dataset(f"#refs#/{row}", data=text[:, None]).ref
    columns = {f"{name}Ndxs": np.array(of, np.uint16)[:, None] for name, of in
               (("train", train), ("test", test))}  # fmt: skip
    savemat(root / "splits.mat", columns)
    names = np.array([[f"class {index}" for index in range(1, 41)]], dtype=object)
    mapping = rng.integers(1, 41, (1, 894)).astype(np.uint8)
    savemat(root / "classMapping40.mat", {"mapClass": mapping, "className": names})
    return root
