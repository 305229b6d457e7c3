"""Tiny files in the layout of BigEarthNet-MM v1, for tests: true names, sizes, types and CRS."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from make_raster import write_georeferenced

METRES = 1200  # that a patch covers

# Pixels of a band along them.
SIZES = {
    **dict.fromkeys(("B02", "B03", "B04", "B08"), 120),
    **dict.fromkeys(("B05", "B06", "B07", "B8A", "B11", "B12"), 60),
    **dict.fromkeys(("B01", "B09"), 20),
}


def s2_name(i: int) -> str:
    return f"S2A_MSIL2A_201706{13 + i // 3:02d}T101031_{i}_48"


def s1_name(i: int) -> str:
    return f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{i}_48"


def make_bigearthnet_mm(
    root: Path,
    labels: Sequence[Sequence[str]],
    splits: Mapping[str, Sequence[int]] | None = None,
    brightness: float = 700,
) -> Path:
    """Make pairs of random pixels.

    Args:
        root: the folder.
        labels: of each pair, from the 43 classes.
        splits: `{split: pairs}`; None writes no files of splits.
        brightness: mean of Sentinel-2.
    """
    rng = np.random.default_rng(0)
    for i, names in enumerate(labels):
        s2, s1 = s2_name(i), s1_name(i)
        for band, side in SIZES.items():
            pixels = rng.normal(brightness, 100, (side, side)).clip(0).astype(np.uint16)
            write_georeferenced(root / "BigEarthNet-v1.0" / s2 / f"{s2}_{band}.tif", pixels, METRES)
        for band, mean in (("VV", -12), ("VH", -19)):
            pixels = rng.normal(mean, 5, (120, 120)).astype(np.float32)
            write_georeferenced(
                root / "BigEarthNet-S1-v1.0" / s1 / f"{s1}_{band}.tif", pixels, METRES
            )
        corner = {"ulx": 404400, "uly": 5342400, "lrx": 405600}
        tile = "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE"
        for folder, patch, about in (
            ("BigEarthNet-v1.0", s2, {"tile_source": tile}),
            ("BigEarthNet-S1-v1.0", s1, {"corresponding_s2_patch": s2}),
        ):
            text = json.dumps({"labels": list(names), "coordinates": corner, **about})
            (root / folder / patch / f"{patch}_labels_metadata.json").write_text(text)
    for split, pairs in (splits or {}).items():
        rows = "".join(f"{s2_name(i)},{s1_name(i)}\n" for i in pairs)
        (root / f"{split}.csv").write_text(rows)
    return root
