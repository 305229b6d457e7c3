import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from make_raster import write_georeferenced

from decur import Modality
from decur.data.base import change_modalities
from decur.data.files import read_image
from decur.data.sentinel import (
    check_offset,
    offset_of,
    read_bands,
    without_offset,
)
from decur.errors import BadSampleError, ConfigError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def bilinear(band: np.ndarray, side: int) -> np.ndarray:
    """Bilinear interpolation between pixel centres, in float64, as OpenCV defines INTER_LINEAR."""
    places = (np.arange(side) + 0.5) * len(band) / side - 0.5
    places = places.clip(0, len(band) - 1)
    low = np.floor(places).astype(int).clip(max=len(band) - 2)
    share = places - low
    rows = band[low] * (1 - share)[:, None] + band[low + 1] * share[:, None]
    return rows[:, low] * (1 - share) + rows[:, low + 1] * share


def test_bands_of_other_sizes_are_resized_bilinearly(tmp_path):
    rng = np.random.default_rng(0)
    bands = [rng.integers(0, 9000, (side, side)).astype(np.uint16) for side in (20, 60, 120)]
    files = [write_georeferenced(tmp_path / f"{len(band)}.tif", band, 1200) for band in bands]
    image = read_bands(files, (120, 120))
    assert image.dtype == torch.float32
    expected = [*(bilinear(band.astype(float), 120) for band in bands[:2]), bands[2]]
    np.testing.assert_allclose(image, np.stack(expected), rtol=1e-5, atol=1e-2)


def test_missing_and_compressed_bands_are_named(tmp_path):
    write_georeferenced(tmp_path / "B1.tif", np.ones((4, 4), np.uint16), 1200)
    with pytest.raises(BadSampleError, match=r"B2\.tif: no such file"):
        read_bands([tmp_path / "B1.tif", tmp_path / "B2.tif"], (4, 4))
    write_georeferenced(tmp_path / "B2.tif", np.ones((4, 4), np.uint8), 1200)
    with pytest.raises(BadSampleError, match=r"B2\.tif: has 8-bit pixels.*raw release"):
        read_bands([tmp_path / "B1.tif", tmp_path / "B2.tif"], (4, 4))


@pytest.mark.parametrize(
    ("product", "offset"),
    [
        ("S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE", 0),
        ("S2B_MSIL1C_20211231T101031_N0301_R022_T33UUP_20211231T101608.SAFE", 0),
        ("S2A_MSIL2A_20220125T101031_N0400_R022_T33UUP_20220125T101608.SAFE", 1000),
        ("S2A_MSIL2A_20180613T101031_N0500_R022_T33UUP_20230613T101608", 1000),  # processed anew
        ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_87_48", 0),  # processed by BigEarthNet v2
        ("S2B_MSIL2A_20170924T93020_69_24", 0),
        ("20220124T054639_20220126T054831_T43RCP", 0),  # the first date is the sensing
        ("20220125T054639_20220125T054831_T43RCP", 1000),
        ("nothing to go by", 0),
    ],
)
def test_offset_by_baseline_or_else_by_date(product, offset):
    assert offset_of(product) == offset


def test_offset_is_taken_off_down_to_zero():
    image = torch.tensor([0.0, 900.0, 1000.0, 1500.0, torch.nan])
    torch.testing.assert_close(
        without_offset(image, 1000), torch.tensor([0.0, 0, 0, 500, torch.nan]), equal_nan=True
    )
    assert without_offset(image, 0) is image


@pytest.mark.parametrize(
    ("darkest", "offset", "said"),
    [
        (1100, 0, "set offset to 1000"),
        (300, 1000, "set offset to 0"),
        (1100, 1000, ""),
        (300, 0, ""),
    ],
)
def test_warns_where_values_and_offset_do_not_fit(darkest, offset, said, caplog):
    scenes = [torch.full((2, 4, 4), 3000.0) for _ in range(4)]
    for scene in scenes[:3]:
        scene[1] = darkest
        scene[1, 0] = torch.nan
    scenes[3][1] = 1400 - darkest  # of the other kind: not most scenes
    check_offset([(scene, offset) for scene in scenes], "ROOT")
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * bool(said)
    assert said in caplog.text
    assert not said or "ROOT: " in caplog.text


def test_no_scenes_no_warning(caplog):
    check_offset([], "ROOT")
    assert not caplog.records


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
def test_real_scenes_of_2022_look_shifted(caplog):
    files = sorted((REAL / "terramesh" / "S2L1C").glob("*.tif"))
    check_offset([(read_image(file), 1000) for file in files], "terramesh")
    assert not caplog.records
    check_offset([(read_image(file), 0) for file in files], "terramesh")
    assert "set offset to 1000" in caplog.text


def test_fields_of_modalities_can_be_changed():
    known = {"s1": Modality.preset("sentinel1").with_(name="s1", size=(8, 8))}
    assert change_modalities(known, None) == known
    changed = change_modalities(known, {"s1": {"cut": 0, "mean": [0, 1]}})["s1"]
    assert (changed.cut, changed.mean, changed.std) == (0, (0, 1), known["s1"].std)
    assert change_modalities(known, {"s1": "sentinel1"}) == known
    l2a = {"s2": Modality.preset("sentinel2-l2a").with_(name="s2", size=(8, 8))}
    l1c = change_modalities(l2a, {"s2": "sentinel2-l1c"})["s2"]
    assert (l1c.bands, l1c.name, l1c.size) == (l2a["s2"].bands, "s2", (8, 8))
    assert l1c.mean[-3:] == (830.066, 2177.072, 1524.065)  # B9, B11, B12: B10 is left out
    for wrong, said in (
        ({"s3": {}}, r"no 's3'; choose from s1"),
        ({"s1": {"men": 1}}, "unknown key 'men'"),
        ({"s1": {"bands": ["VH", "VV"]}}, r"bands are VV, VH in this order"),
        ({"s1": "dem"}, r"bands are VV, VH"),
        ({"s1": 3}, "preset's name or a mapping"),
    ):
        with pytest.raises(ConfigError, match=said):
            change_modalities(known, wrong)
