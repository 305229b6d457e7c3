"""Tiny files in the layout of OMBRIA, for tests: true names, types and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from make_folder import write


def make_ombria(
    root: Path,
    places: Mapping[str, Sequence[int]],
    events: Mapping[str, Sequence[int]] | None = None,
    side: int = 256,
) -> Path:
    """Make places with a flood: dark for radar, blue for the optical sensor.

    Args:
        root: the folder.
        places: `{"train" or "test": numbers}`.
        events: `{name: numbers}` of the floods of 2021.
        side: of a picture.
    """
    rng = np.random.default_rng(0)

    def place(folders: tuple[Path, Path], names: Sequence[Sequence[str]]) -> None:
        flood = np.kron(rng.integers(0, 2, (8, 8)), np.ones((side // 8, side // 8))) > 0
        for folder, (before, after, mask) in zip(folders, names, strict=True):
            for kind, name in (("BEFORE", before), ("AFTER", after)):
                wet = flood & (kind == "AFTER")
                bands = 1 if folder is folders[0] else 3
                pixels = rng.integers(120, 200, (bands, side, side), dtype=np.uint8)
                pixels[:, wet] //= 4
                write(folder / kind / name, pixels)
            write(folder / "MASK" / mask, np.where(flood, 255, 0).astype(np.uint8))

    for split, numbers in places.items():
        for number in numbers:
            place(
                (root / "OmbriaS1" / split, root / "OmbriaS2" / split),
                [
                    [f"S{sensor}_{kind}_{number:04d}.png" for kind in ("before", "after", "mask")]
                    for sensor in (1, 2)
                ],
            )
    for event, numbers in (events or {}).items():
        for number in numbers:
            names = [f"{kind}_{number}.png" for kind in ("imbefore", "imafter", "gt")]
            home = root / "2021" / event
            place((home / "Sentinel1", home / "Sentinel2"), [names, names])
    return root
