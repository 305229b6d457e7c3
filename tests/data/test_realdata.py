"""On real files, read in place; see ../shared/data/README.md."""

import csv
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import Collate, PairedFolder, SkipBad, compute_stats
from decur.data.files import read_header, read_image, read_mask
from decur.encoders import load_encoder
from decur.errors import BadSampleError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}"),
    pytest.mark.filterwarnings("ignore:Dataset has no geotransform"),
]

SENSORS = {"S1RTC": 2, "S2L1C": 13, "S2L2A": 12, "DEM": 1}
PRESETS = {"S1RTC": "sentinel1", "S2L1C": "sentinel2-l1c", "S2L2A": "sentinel2-l2a", "DEM": "dem"}


def pretrained(run, *arguments):
    """Two steps of `decur pretrain` with a tiny encoder; the run's metrics, `{name: number}`."""
    tiny = ["--encoder.name=test_resnet", "--projector.width=16", "--views.size=48"]
    tiny += ["--loader.workers=0", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    tiny += ["--monitor.every_epochs=0", "--trainer.accelerator=cpu", f"--run={run}"]
    main(["pretrain", *arguments, *tiny])
    (row,) = csv.DictReader((run / "metrics.csv").open())
    return {key: float(value) for key, value in row.items() if value and key != "time"}


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


@pytest.mark.parametrize("sensors", [("S1RTC", "S2L2A", "DEM"), tuple(SENSORS)])
def test_terramesh_pretrains_all_pairs_of_its_sensors(sensors, tmp_path):
    (tmp_path / "sensors.yaml").write_text(
        yaml.safe_dump({name: PRESETS[name] for name in sensors}, sort_keys=False)
    )
    given = (f"--data.root={REAL / 'terramesh'}", f"--data.modalities={tmp_path / 'sensors.yaml'}")
    metrics = pretrained(tmp_path / "run", *given, "--loader.batch_size=2")
    assert all(np.isfinite(list(metrics.values())))
    for a, b in combinations(sensors, 2):
        assert {f"common/{a}-{b}", f"unique/{a}-{b}"} <= {key.split("loss/")[-1] for key in metrics}
    for name in sensors:
        encoder = load_encoder(tmp_path / "run" / "encoders" / f"{name}.safetensors")
        assert encoder.modality.channels == SENSORS[name]
    data = PairedFolder(REAL / "terramesh", tmp_path / "sensors.yaml")
    for name, image in data[0]["images"].items():  # presets, of other data, still fit these scenes
        assert data.modalities[name].scale(image).std() > 0.02, name


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
    for sensor, folder, ending in (("s1", "S1", "_S1Hand"), ("s2", "S2", "_S2Hand")):
        (tmp_path / sensor).mkdir()
        for file in (REAL / "sen1floods11" / folder).iterdir():
            (tmp_path / sensor / file.name.replace(ending, "")).symlink_to(file)
    (tmp_path / "mask").mkdir()
    for file in (REAL / "sen1floods11" / "Labels").iterdir():
        label = read_mask(file).numpy()
        label[label == -1] = 255  # not labelled
        picture = tmp_path / "mask" / f"{file.stem.replace('_LabelHand', '')}.png"
        Image.fromarray(label.astype(np.uint8)).save(picture)
    presets = {"s1": "sentinel1", "s2": "sentinel2-l1c"}
    sized = {name: {"preset": preset, "size": [64, 64]} for name, preset in presets.items()}
    data = PairedFolder(tmp_path, sized)
    assert data.ids == ["Ghana_83483", "Paraguay_34417", "Spain_7370579"]
    batch = Collate(data.modalities, data.targets)([SkipBad(data)[i] for i in range(3)])
    assert batch["present"]["s1"].tolist() == [True, False, True]
    assert batch["present"]["s2"].tolist() == [False, False, True]
    (bad,) = batch["bad"]
    assert "Paraguay_34417" in bad[0] and not any("\n" in str(part) for part in bad)
    spain, ghana = batch["target"]["mask"][2], batch["target"]["mask"][0]
    assert set(spain.unique().tolist()) >= {0, 1} and set(ghana.unique().tolist()) == {255}


def test_sen1floods11_unlabelled_pixels_are_told_of_in_one_line(tmp_path):
    name = "Spain_7370579"
    for folder, file in (("s1", f"S1/{name}_S1Hand.tif"), ("mask", f"Labels/{name}_LabelHand.tif")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.tif").symlink_to(REAL / "sen1floods11" / file)
    (tmp_path / "mask" / "classes.txt").write_text("dry\nflooded\n")
    with pytest.raises(BadSampleError, match=rf"mask/{name}\.tif.*value -1.*mask_nodata -1") as bad:
        PairedFolder(tmp_path, {"s1": "sentinel1"})[0]
    assert "\n" not in str(bad.value)
    mask = PairedFolder(tmp_path, {"s1": "sentinel1"}, mask_nodata=[-1])[0]["target"]["mask"]
    assert set(mask.unique().tolist()) == {0, 1, 255}


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


def test_seven_scenes_pretrains_colour_with_depth_that_has_holes(tmp_path):
    root = tmp_path / "pairs"
    for folder in ("rgb", "depth"):
        (root / folder).mkdir(parents=True)
        for file in (REAL / "seven_scenes" / folder).iterdir():
            (root / folder / file.name).symlink_to(file)
    holes = {"preset": "depth", "value_range": [0, 8000], "nodata": [0, 65535]}
    sensors = {"rgb": "rgb", "depth": holes}
    (tmp_path / "sensors.yaml").write_text(yaml.safe_dump(sensors, sort_keys=False))
    data = PairedFolder(root, tmp_path / "sensors.yaml")
    raw = np.array(Image.open(REAL / "seven_scenes" / "depth" / "000850.png"))
    depth = data[data.ids.index("000850")]["images"]["depth"][0]
    assert (raw == 0).any() and (raw == 65535).any()
    np.testing.assert_array_equal(depth.isnan(), (raw == 0) | (raw == 65535))
    scaled = data.modalities["depth"].scale(depth[None])[0]
    assert (scaled[depth.isnan()] == 0.5).all()
    known = ~depth.isnan()
    np.testing.assert_allclose(scaled[known], raw[known.numpy()] / 8000, rtol=1e-6)
    given = (f"--data.root={root}", f"--data.modalities={tmp_path / 'sensors.yaml'}")
    metrics = pretrained(tmp_path / "run", *given, "--loader.batch_size=8")
    assert all(np.isfinite(list(metrics.values())))
    encoder = load_encoder(tmp_path / "run" / "encoders" / "depth.safetensors")
    assert encoder.modality.nodata == (0, 65535) and encoder.modality.value_range == (0, 8000)
