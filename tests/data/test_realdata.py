"""On real files, read in place; see ../shared/data/README.md."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from decur.data import Collate, PairedFolder, SkipBad, compute_stats
from decur.data.files import read_header, read_image, read_mask
from decur.errors import BadSampleError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}"),
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
]

SENSORS = {"S1RTC": 2, "S2L1C": 13, "S2L2A": 12, "DEM": 1}


def test_ombria_is_1388_pairs_in_groups():
    data = PairedFolder(REAL / "ombria")
    assert len(data) == 1388
    assert all(has.all() for has in data.present.values())
    assert {n: (m.channels, m.size) for n, m in data.modalities.items()} == {
        "s1": (1, (128, 128)),
        "s2": (3, (128, 128)),
    }
    assert data.modalities["s1"].augmentation == "sar"
    assert data.groups is not None
    assert len(set(data.groups)) == 63
    assert data.targets["mask"].classes == ("0", "1")
    index = data.ids.index("0001_after")
    assert set(data[index]["target"]["mask"].unique().tolist()) == {0, 1}
    assert "mask" not in data[data.ids.index("0001_before")]["target"]
    assert torch.equal(
        data[index]["images"]["s2"], read_image(REAL / "ombria" / "s2" / "0001_after.png")
    )
    with pytest.raises(DataError, match="choose from test, train"):
        PairedFolder(REAL / "ombria", split="val")


def test_ombria_in_batches():
    data = PairedFolder(REAL / "ombria", split="test")
    assert len(data) == 140
    loader = DataLoader(SkipBad(data), 16, collate_fn=Collate(data.modalities, data.targets))
    batch = next(iter(loader))
    assert batch["images"]["s2"].shape == (16, 3, 128, 128)
    assert batch["target"]["mask"].shape == (16, 128, 128)
    assert batch["bad"] == []


def test_terramesh_is_four_sensors():
    names = {name: {"bands": [f"b{i}" for i in range(n)], "scaling": "image"}
             for name, n in SENSORS.items()}  # fmt: skip
    data = PairedFolder(REAL / "terramesh", names)
    assert len(data) == 5
    sample = data[0]
    shapes = {name: tuple(image.shape) for name, image in sample["images"].items()}
    assert shapes == {name: (n, 224, 224) for name, n in SENSORS.items()}
    assert all(image.isfinite().all() for image in sample["images"].values())
    label = read_mask(REAL / "terramesh" / "LULC" / f"{data.ids[0]}.tif")
    assert 1 <= label.min() <= label.max() <= 9


def test_terramesh_inferred_and_its_statistics():
    statistics = compute_stats(REAL / "terramesh", workers=2)
    inferred = PairedFolder(REAL / "terramesh").modalities
    assert inferred["S1RTC"].augmentation == "sar"
    assert inferred["DEM"].augmentation == "dem"
    for name in SENSORS:
        paths = sorted((REAL / "terramesh" / name).iterdir())
        pixels = torch.stack([read_image(path) for path in paths], 1).double().flatten(1).numpy()
        np.testing.assert_allclose(statistics[name].mean, pixels.mean(1), rtol=1e-12)
        np.testing.assert_allclose(statistics[name].std, pixels.std(1), rtol=1e-12)
        np.testing.assert_allclose(inferred[name].mean, pixels.mean(1), rtol=1e-6)
        drawn = statistics[name].percentiles((2, 98))
        exact = np.percentile(pixels, (2, 98), axis=1)
        assert (np.abs(drawn - exact) < 0.05 * pixels.std(1)).all()


def test_sen1floods11_bad_chips_are_told_apart():
    folder = REAL / "sen1floods11"
    with pytest.raises(BadSampleError, match=r"Paraguay_34417.*no measured pixel"):
        read_image(folder / "S1" / "Paraguay_34417_S1Hand.tif", bands=2)
    with pytest.raises(BadSampleError, match=r"Ghana_83483.*no measured pixel"):
        read_image(folder / "Labels" / "Ghana_83483_LabelHand.tif", nodata=-1)
    good = read_image(folder / "S1" / "Spain_7370579_S1Hand.tif", bands=2)
    assert good.shape == (2, 512, 512)
    assert read_header(folder / "S1" / "Spain_7370579_S1Hand.tif").names == ("VV", "VH")
    optical = read_image(folder / "S2" / "Spain_7370579_S2Hand.tif", bands=13)
    assert optical.min() >= 7


def test_sen1floods11_as_a_folder_skips_the_empty_chip(tmp_path):
    for file in (REAL / "sen1floods11" / "S1").iterdir():
        target = tmp_path / "s1" / file.name.replace("_S1Hand", "")
        target.parent.mkdir(exist_ok=True)
        target.symlink_to(file)
    data = PairedFolder(tmp_path, {"s1": {"preset": "sentinel1", "size": [64, 64]}})
    batch = Collate(data.modalities, {})([SkipBad(data)[i] for i in range(3)])
    assert batch["present"]["s1"].tolist() == [True, False, True]
    assert len(batch["bad"]) == 1
    assert "Paraguay_34417" in batch["bad"][0][0]


def test_bigearthnet_bands_read_at_their_own_sizes():
    root = REAL / "bigearthnet_mm"
    radar = sorted((root / "BigEarthNet-S1-Example").glob("*/*.tif"))
    assert len(radar) == 12
    for path in radar:
        image = read_image(path, bands=1)
        assert image.shape == (1, 120, 120)
        assert -60 < image.median() < 0
    sizes = {read_header(p).size for p in (root / "BigEarthNet-S2-Example").glob("*/*.tif")}
    assert sizes == {(120, 120), (60, 60), (20, 20)}


def test_seven_scenes_depth_in_millimetres():
    data = PairedFolder(
        REAL / "seven_scenes",
        {
            "rgb": "rgb",
            "depth": {"preset": "depth", "value_range": [0, 8000], "nodata": 65535},
        },
    )
    assert len(data) == 100
    depth = data[0]["images"]["depth"]
    assert depth.shape == (1, 480, 640)
    assert not (depth == 65535).any()
