"""Tiny files in the layout of BigEarthNet v2, for tests: true names, sizes, types and CRS."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from make_bigearthnet_mm import METRES, SIZES
from make_raster import write_georeferenced


def s2_name(i: int, baseline: str = "N9999") -> str:
    return f"S2A_MSIL2A_201706{13 + i // 3:02d}T101031_{baseline}_R022_T33UUP_{i}_48"


def s1_name(i: int) -> str:
    return f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{i}_48"


def reference_map(i: int) -> np.ndarray:
    """What the maker writes: CORINE codes, 999 where there are none."""
    codes = np.full((120, 120), (111, 112, 411, 332)[i % 4], dtype=np.uint16)
    codes[:60] = 523
    codes[:10, :10] = 999
    return codes


def make_bigearthnet_v2(
    root: Path,
    labels: Sequence[Sequence[str]],
    splits: Sequence[str],
    brightness: float = 700,
    baseline: str = "N9999",
) -> Path:
    """Make pairs of random pixels.

    Args:
        root: the folder.
        labels: of each pair, from the 19 classes.
        splits: of each pair, as the release spells them: train, validation, test.
        brightness: mean of Sentinel-2.
        baseline: of processing, in the names of Sentinel-2.
    """
    rng = np.random.default_rng(0)
    for i in range(len(labels)):
        s2, s1 = s2_name(i, baseline), s1_name(i)
        tile, scene = "_".join(s2.split("_")[:-2]), "_".join(s1.split("_")[:-3])
        for band, side in SIZES.items():
            pixels = rng.normal(brightness, 100, (side, side)).clip(0).astype(np.uint16)
            file = root / "BigEarthNet-S2" / tile / s2 / f"{s2}_{band}.tif"
            write_georeferenced(file, pixels, METRES, nodata=0)
        for band, mean in (("VV", -12), ("VH", -19)):
            pixels = rng.normal(mean, 5, (120, 120)).astype(np.float32)
            file = root / "BigEarthNet-S1" / scene / s1 / f"{s1}_{band}.tif"
            write_georeferenced(file, pixels, METRES)
        file = root / "Reference_Maps" / tile / s2 / f"{s2}_reference_map.tif"
        write_georeferenced(file, reference_map(i), METRES, nodata=0)
    numbers = range(len(labels))
    columns = {
        "patch_id": [s2_name(i, baseline) for i in numbers],
        "labels": [list(names) for names in labels],
        "split": list(splits),
        "country": ["Austria"] * len(labels),
        "s1_name": [s1_name(i) for i in numbers],
        "s2v1_name": [f"S2A_MSIL2A_20170613T101031_{i}_48" for i in numbers],
        "contains_seasonal_snow": [False] * len(labels),
        "contains_cloud_or_shadow": [False] * len(labels),
    }
    pq.write_table(pa.table(columns), root / "metadata.parquet")
    return root
