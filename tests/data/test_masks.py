import json

import numpy as np
import pytest
import torch
from make_folder import make_folder, write, write_raster
from PIL import Image

from decur.data import PairedFolder
from decur.data.masks import MaskCodes, read_raw_mask
from decur.errors import BadSampleError, DataError
from decur.transfer.tasks import make_task

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")


def folder(tmp_path, mask, extension=".png"):
    root = make_folder(tmp_path, {"s1": ["a"]})
    write(root / "mask" / f"a{extension}", mask)
    return root


def test_values_that_mean_unknown_are_ones_own(tmp_path):
    mask = np.array([[-1, 0], [1, 255]], np.int16)
    root = folder(tmp_path, mask, ".tif")
    (root / "mask" / "classes.txt").write_text("land\nwater\n")
    with pytest.raises(BadSampleError, match=r"value -1, known are 0 to 1; .*mask_nodata -1 255"):
        PairedFolder(root)[0]
    data = PairedFolder(root, mask_nodata=[-1, 255])
    assert data[0]["target"]["mask"].tolist() == [[255, 0], [1, 255]]
    assert data.targets["mask"].classes == ("land", "water")
    everything = PairedFolder(make_folder(root, {}), mask_nodata=[0, -1, 255])
    assert everything[0]["target"]["mask"].tolist() == [[255, 255], [1, 255]]


def test_where_the_file_says_that_there_is_nothing_it_is_unknown(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a"]})
    write_raster(root / "mask" / "a.tif", np.array([[[7, 0], [1, 2]]], np.int16), nodata=7)
    data = PairedFolder(root)
    assert data.targets["mask"].classes == ("0", "1", "2")
    assert data[0]["target"]["mask"].tolist() == [[255, 0], [1, 2]]


def test_the_remedy_for_masks_of_0_and_255_is_one(tmp_path):
    root = folder(tmp_path, np.array([[0, 255], [255, 0]], np.uint8))
    with pytest.raises(
        DataError, match=r"write .* the lines `background, 0` and `foreground, 255`"
    ):
        PairedFolder(root)
    (root / "mask" / "classes.txt").write_text("background, 0\nforeground, 255\n")
    assert PairedFolder(root)[0]["target"]["mask"].tolist() == [[0, 1], [1, 0]]
    unknown = PairedFolder(root, mask_nodata=255)
    assert unknown[0]["target"]["mask"].tolist() == [[0, 255], [255, 0]]


def test_classes_beyond_255_are_themselves(tmp_path):
    mask = np.array([[0, 255, 256], [300, 44, 65_535]], np.uint16)
    root = folder(tmp_path, mask, ".tif")
    data = PairedFolder(root, mask_nodata=[65_535])
    target = data.targets["mask"]
    assert len(target.classes) == 301 and target.void == -1
    found = data[0]["target"]["mask"]
    assert found.tolist() == [[0, 255, 256], [300, 44, -1]]
    task = make_task("mask", target)
    output = torch.nn.functional.one_hot(found.clamp_min(0)[None], 301).permute(0, 3, 1, 2).float()
    kept = task.keep(output, found[None])
    assert kept["output"].tolist() == [[[0, 255, 256], [300, 44, 0]]]
    assert task.metrics(kept) == {"mIoU": 1, "overall_accuracy": 1}
    assert task.loss(100 * output, found[None]) < 1e-6


def test_values_of_classes_are_in_the_table(tmp_path):
    mask = np.array([[111, 112], [523, 999]], np.uint16)
    root = folder(tmp_path, mask, ".tif")
    table = root / "mask" / "classes.txt"
    table.write_text("urban, dense, 111\nsea\t523\nurban, loose, 112\nunknown, 999\n")
    data = PairedFolder(root)
    assert data.targets["mask"].classes == ("urban, dense", "sea", "urban, loose")
    assert data[0]["target"]["mask"].tolist() == [[0, 2], [1, 255]]
    table.write_text("urban, 111\nsea, 523\nloose, 112\n")
    with pytest.raises(BadSampleError, match=r"value 999, which is no class of .*classes\.txt"):
        PairedFolder(root)[0]
    table.write_text("urban, 111\nsea, 111\n")
    with pytest.raises(DataError, match="two lines have the value of 'urban'"):
        PairedFolder(root)


@pytest.mark.parametrize("palette", [False, True])
def test_colours_of_classes_are_in_the_table(tmp_path, palette):
    root = make_folder(tmp_path, {"s1": ["a"]})
    (root / "mask").mkdir()
    colours = np.array([[[255, 0, 0], [0, 0, 255]], [[0, 0, 0], [255, 0, 0]]], np.uint8)
    picture = Image.fromarray(colours)
    (picture.quantize(4) if palette else picture).save(root / "mask" / "a.png")
    table = root / "mask" / "classes.txt"
    table.write_text("roof, 255, 0, 0\nwater\t#0000ff\nunknown, 0 0 0\n")
    data = PairedFolder(root)
    assert data.targets["mask"].classes == ("roof", "water")
    assert data[0]["target"]["mask"].tolist() == [[0, 1], [255, 0]]
    table.write_text("roof, 255, 0, 0\nwater, #0000ff\n")
    with pytest.raises(BadSampleError, match=r"colour 0, 0, 0, which is no class; add a line"):
        PairedFolder(root)[0]
    table.write_text("roof, 255, 0, 0\nwater\n")
    with pytest.raises(DataError, match=r"classes\.txt: 'water' has no colour"):
        PairedFolder(root)


def test_names_may_hold_commas_and_numbers(tmp_path):
    root = folder(tmp_path, np.eye(2, dtype=np.uint8))
    (root / "mask" / "classes.txt").write_text("grass, swamp\nroof, type 2\ntrack, 3\n")
    names = ("grass, swamp", "roof, type 2", "track, 3")
    assert PairedFolder(root).targets["mask"].classes == names


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        ("name;value\nroof;7\nwater;9\n", ("roof", "water")),
        ("class, R, G, B\nroof 7 7 7\nwater\t9 9 9\n", ("roof", "water")),
        ("7: roof\n9: water\n", ("roof", "water")),
        ("7 roof, red\n9 water\n", ("roof, red", "water")),
    ],
)
def test_lists_of_classes_as_people_write_them(tmp_path, lines, names):
    colours = "R, G, B" in lines
    mask = np.array([[7, 9], [9, 7]], np.uint8)
    root = folder(tmp_path, np.stack([mask] * 3) if colours else mask)
    (root / "mask" / "classes.txt").write_text(lines)
    data = PairedFolder(root)
    assert data.targets["mask"].classes == names
    assert data[0]["target"]["mask"].tolist() == [[0, 1], [1, 0]]


def test_masks_that_pair_with_no_picture(tmp_path, caplog):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "mask": ["a_mask", "b_mask"]})
    with pytest.raises(
        DataError, match=r"2 of 2 masks .*'a_mask' \(a picture's is 'a'\)"
    ) as refused:
        PairedFolder(root)
    pattern = json.loads(str(refused.value).split("pattern '")[1].split("'")[0])
    assert "mask" in PairedFolder(root, pattern=pattern)[0]["target"]
    write(root / "mask" / "a.png", np.eye(8, dtype=np.uint8))
    PairedFolder(root)
    assert "2 of 3 masks have no picture of their name" in caplog.text


def test_what_is_most_likely_no_class_is_told_of(tmp_path, caplog):
    root = folder(tmp_path, np.array([[0, 1], [2, 65_535]], np.uint16), ".tif")
    PairedFolder(root)
    assert "4 different values up to 65535, taken for 65536 classes; give" in caplog.text
    root = folder(tmp_path / "colours", np.zeros((3, 2, 2), np.uint8))
    with pytest.raises(DataError, match=r"none of 1 masks .* the colour of each class in classes"):
        PairedFolder(root)
    (root / "classes.txt").write_text("a\n")
    (root / "mask" / "a.png").unlink()
    assert "left out: classes.txt (not read)" in PairedFolder(root).describe()


@pytest.mark.parametrize("file", ["a.jpg", "a.tif"])
def test_masks_with_lossy_compression_are_refused(tmp_path, file):
    import rasterio

    root = make_folder(tmp_path, {"s1": ["a"]})
    (root / "mask").mkdir()
    pixels = np.kron(np.eye(2, dtype=np.uint8), np.ones((16, 16), np.uint8))
    if file == "a.jpg":
        Image.fromarray(pixels).save(root / "mask" / file)
    else:
        about = {"count": 1, "height": 32, "width": 32, "dtype": "uint8", "compress": "jpeg"}
        with rasterio.open(root / "mask" / file, "w", driver="GTiff", **about) as target:
            target.write(pixels[None])
    with pytest.raises(DataError, match=rf"{file}: is compressed as JPEG.*save masks as PNG"):
        PairedFolder(root)[0]


@pytest.mark.parametrize(("name", "how"), [("a.png", "JPEG"), ("a.webp", "WebP"), ("a.bmp", "")])
def test_lossy_masks_are_told_by_what_they_hold(tmp_path, name, how):
    (tmp_path / "mask").mkdir()
    path = tmp_path / "mask" / name
    picture = Image.fromarray(np.eye(16, dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0110] = "camera"  # before the pixels of a WebP
    picture.save(path, **({"exif": exif} if how else {}), **({"format": how} if how else {}))
    if not how:
        assert read_raw_mask(path).unique().tolist() == [0, 1]
        return
    with pytest.raises(BadSampleError, match=f"compressed as {how}"):
        read_raw_mask(path)
    colours = np.moveaxis(np.stack([np.eye(16)] * 3), 0, -1).astype(np.uint8)
    Image.fromarray(colours).save(tmp_path / "mask" / "b.webp", lossless=True, exif=exif)
    codes = MaskCodes(tmp_path, ("a", "b"), table={0: 0, 65793: 1}, colours=True)
    assert codes.read(tmp_path / "mask" / "b.webp").tolist() == np.eye(16).tolist()


def test_255_beside_higher_classes_is_told_of(tmp_path, caplog):
    root = folder(tmp_path, np.array([[0, 255], [299, 1]], np.uint16), ".tif")
    assert PairedFolder(root)[0]["target"]["mask"].tolist() == [[0, -1], [299, 1]]
    assert "hold 255 beside classes up to 299, and it means unknown" in caplog.text
    caplog.clear()
    data = PairedFolder(root, mask_nodata=-1)
    assert data[0]["target"]["mask"].tolist() == [[0, 255], [299, 1]]
    assert "255 beside" not in caplog.text


def test_masks_may_be_as_large_as_max_pixels_says(tmp_path, monkeypatch):
    root = folder(tmp_path, np.array([[0, 1], [1, 1]], np.uint8))
    with pytest.raises(DataError, match="more than max_pixels"):
        PairedFolder(root, max_pixels=3)
    monkeypatch.setattr("decur.data.masks.MAX_PIXELS", 3)
    assert PairedFolder(root, max_pixels=10_000).targets["mask"].classes == ("0", "1")
