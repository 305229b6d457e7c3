"""Tiny files in the layout of RGB-X sets, for tests: true names and types, smaller pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from make_folder import write


def make_rgbx(
    root: Path,
    names: Mapping[str, Sequence[str]],
    x: str = "HHA",
    x_bands: int = 3,
    classes: int = 5,
    size: tuple[int, int] = (24, 32),
    line: str = "{}",
) -> Path:
    """Make pictures with labels in blocks, 0 (not labelled) to `classes`.

    Args:
        root: the folder.
        names: `{"train" or "test": names}`.
        x: folder of the second picture.
        x_bands: its bands.
        classes: their number.
        size: of a picture.
        line: how the split files spell a name.
    """
    rng = np.random.default_rng(0)
    for split, of_split in names.items():
        for name in of_split:
            blocks = rng.integers(0, classes + 1, (4, 4))
            blocks[:2, 0] = 0, classes
            label = np.kron(blocks, np.ones((size[0] // 4, size[1] // 4))).astype(np.uint8)
            for folder, bands in (("RGB", 3), (x, x_bands)):
                noise = rng.integers(0, 20, (bands, *size))
                write(root / folder / f"{name}.jpg", (40 * label + noise).astype(np.uint8))
            write(root / "Label" / f"{name}.png", label)
        (root / f"{split}.txt").write_text("".join(line.format(n, n) + "\n" for n in of_split))
    return root
