"""The readers of data sets on real files of them, read in place; see ../shared/data/README.md."""

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch

from decur.data import SSL4EOS12, BigEarthNetV2, GeoNRW, PairedFolder
from decur.data.bigearthnet_v2 import _Metadata
from decur.data.files import read_image
from decur.data.sunrgbd import _split

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}"),
]


def pixels(file):
    with rasterio.open(file) as source:
        return source.read()


def test_geonrw_photographs_have_four_bands_of_which_three_are_read():
    data = GeoNRW(REAL / "geonrw")
    assert len(data) == 3 * 16 and not data.present["dem"].any()
    assert {id_.split("_")[0] for id_ in data.ids} == {"aachen", "bochum", "duesseldorf"}
    index = data.ids.index("aachen_296_5625_1_2")
    sample = data[index]
    whole = pixels(REAL / "geonrw" / "aachen" / "296_5625_rgb.jp2")
    assert whole.shape == (4, 1000, 1000)
    np.testing.assert_array_equal(sample["images"]["rgb"], whole[:3, 250:500, 500:750])
    cover = pixels(REAL / "geonrw" / "aachen" / "296_5625_seg.tif")[0, 250:500, 500:750]
    paper = np.where(cover == 0, 255, cover.astype(int) - 1)  # ten classes; 0 is background
    np.testing.assert_array_equal(sample["target"]["cover"], paper)
    eleven = GeoNRW(REAL / "geonrw", background="class")
    np.testing.assert_array_equal(eleven[index]["target"]["cover"], cover)
    assert len(GeoNRW(REAL / "geonrw", split="test")) == 16  # Duesseldorf


@pytest.mark.parametrize("product", ["s2c", "s2a"])
def test_a_place_of_ssl4eo_has_its_seasons(product, caplog):
    with caplog.at_level(logging.WARNING, "decur"):
        data = SSL4EOS12(REAL / "ssl4eo_s12", {"s1": "s1", "s2": product})
    assert data.ids == [f"0000200_{k}" for k in range(4)] and not caplog.text
    seen = set()
    for index in range(4):
        s1, s2 = (data[index]["images"][name] for name in ("s1", "s2"))
        assert s1.shape == (2, 264, 264) and s2.shape == (13 - (product == "s2a"), 264, 264)
        assert -25 < s1[0].median() < 0 and s2.isfinite().all()
        files = {Path(file).stem: file for file in data.files(index) if product in str(file)}
        seen.add(Path(files["B2"]).parent.name)
        row = data.modalities["s2"].bands.index("B2")  # of 10 m: not resized
        np.testing.assert_array_equal(s2[row], pixels(files["B2"])[0])
    assert len(seen) == 2  # two of the four seasons are there


@pytest.fixture
def reben(tmp_path):
    """A root with the real patches, which are no pair, and metadata that names them as one."""
    real = REAL / "bigearthnet_v2" / "BigEarthNet"
    for folder in real.iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    (s2,) = (real / "BigEarthNet-S2").glob("*/*")
    (s1,) = (real / "BigEarthNet-S1").glob("*/*")
    row = {"patch_id": [s2.name], "s1_name": [s1.name], "split": ["test"], "labels": [["Pastures"]]}
    pq.write_table(pa.table(row), tmp_path / "metadata.parquet")
    return tmp_path


def test_reben_patches_and_that_0_is_no_measurement(reben, tmp_path):
    data = BigEarthNetV2(reben, split="test")
    sample = data[0]
    assert sample["images"]["s1"].shape == (2, 120, 120)
    assert sample["images"]["s2"].shape == (12, 120, 120)
    assert all(image.isfinite().all() for image in sample["images"].values())
    assert sample["target"]["cover"].sum() == 1
    for file in (reben / "BigEarthNet-S2").glob("*/*/*.tif"):
        with rasterio.open(file) as source:
            band, about = source.read(), source.profile
        assert about["nodata"] == 0 and band.min() > 0
        band[0, 0, 0] = 0
        with rasterio.open(tmp_path / "b.tif", "w", **about) as target:
            target.write(band)
        assert read_image(tmp_path / "b.tif")[0].isnan().nonzero().tolist() == [[0, 0]]


def test_reben_metadata_and_maps(reben):
    table = _Metadata(REAL / "bigearthnet_v2" / "metadata.parquet", "train", with_labels=True)
    assert len(table.pairs) == len(table.labels) > 0
    assert all(s2.startswith("S2") and s1.startswith("S1") for s2, s1 in table.pairs.items())
    (file,) = (reben / "Reference_Maps").glob("*/*/*.tif")
    columns = {"patch_id": [file.parent.name], "s1_name": ["none"], "split": ["train"]}
    labels = {"labels": [["Arable land"]]}
    pq.write_table(pa.table({**columns, **labels}), reben / "metadata.parquet")
    scene = reben / "S2" / file.parent.parent.name / file.parent.name
    scene.mkdir(parents=True)
    data = BigEarthNetV2(reben, maps=True, s2_folder="S2", s1_folder="BigEarthNet-S1")
    mask, codes = data._map(0), pixels(file)[0]
    names = data.targets["map"].classes
    assert (mask[torch.from_numpy(codes == 211)] == names.index("Arable land")).all()
    assert (codes == 211).any() and mask.max() < 19


def test_the_official_split_of_sun_rgbd():
    train, test = (_split(REAL / "sun_rgbd_toolbox", name) for name in ("train", "test"))
    assert (len(train), len(test)) == (5285, 5050) and not set(train) & set(test)
    assert all(id_.split("/")[0] in ("kv1", "kv2", "realsense", "xtion") for id_ in train + test)


def test_sen1floods11_as_downloaded_pairs_by_pattern():
    root = REAL / "sen1floods11"
    pattern = {"S1": "{id}_S1Hand", "S2": "{id}_S2Hand", "mask": "Labels/{id}_LabelHand"}
    sized = {"S1": {"preset": "sentinel1", "size": [64, 64]}}
    sized["S2"] = {"preset": "sentinel2-l1c", "size": [64, 64]}
    data = PairedFolder(root, sized, pattern=pattern, mask_nodata=-1)
    sample = data[data.ids.index("Spain_7370579")]
    assert {name: tuple(x.shape) for name, x in sample["images"].items()} == {
        "S1": (2, 64, 64),
        "S2": (13, 64, 64),
    }
    label = pixels(root / "Labels" / "Spain_7370579_LabelHand.tif")[0]
    expected = np.where(label == -1, 255, label)
    np.testing.assert_array_equal(sample["target"]["mask"], expected)
