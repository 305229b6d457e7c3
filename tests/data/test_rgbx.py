import json
import pickle

import numpy as np
import pytest
import torch
from make_folder import write
from make_rgbx import make_rgbx
from PIL import Image
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import RGBX, Collate
from decur.errors import BadSampleError, ConfigError, DataError

NAMES = {"train": ["0", "1", "2", "3", "10", "11"], "test": ["5", "6"]}


@pytest.fixture
def root(tmp_path):
    return make_rgbx(tmp_path / "NYUDepthv2", NAMES)


def pixels(file):
    return np.asarray(Image.open(file))


def test_names_of_the_split_files(root):
    data = RGBX(root, "train")
    assert data.ids == NAMES["train"]
    assert RGBX(root).ids == [*NAMES["train"], *NAMES["test"]]
    assert {name: (m.bands, m.size) for name, m in data.modalities.items()} == {
        "rgb": (("R", "G", "B"), (24, 32)),
        "hha": (("disparity", "height", "angle"), (24, 32)),
    }
    assert data.modalities["hha"].augmentation == "hha"
    sample = data[4]
    for name, folder in (("rgb", "RGB"), ("hha", "HHA")):
        expected = np.moveaxis(pixels(root / folder / "10.jpg"), -1, 0)
        np.testing.assert_array_equal(sample["images"][name], expected)
    for file in root.glob("*.txt"):
        file.unlink()
    assert sorted(RGBX(root).ids) == sorted([*NAMES["train"], *NAMES["test"]])


def test_label_0_is_void_and_255_stays(root):
    raw = pixels(root / "Label" / "5.png").copy()
    raw[-1] = 255
    write(root / "Label" / "5.png", raw)
    # 8-bit arithmetic wraps 0 - 1 to 255: the shift of those who train on such folders
    expected = raw - np.uint8(1)
    expected[-1] = 255
    data = RGBX(root, "test")
    np.testing.assert_array_equal(data[0]["target"]["label"], expected)
    assert data.targets["label"].classes == ("1", "2", "3", "4", "5")
    kept = RGBX(root, "test", zero_is_void=False)
    np.testing.assert_array_equal(kept[0]["target"]["label"], raw)
    assert len(kept.targets["label"].classes) == 6


def test_classes(root):
    assert RGBX(root, classes=40).targets["label"].classes[-1] == "40"
    assert RGBX(root, classes=["a", "b", "c", "d", "e"]).targets["label"].classes[0] == "a"
    with pytest.raises(BadSampleError, match=r"0\.png: has value 5, the 4 classes are 1 to 4; set"):
        RGBX(root, classes=4)[0]
    with pytest.raises(ConfigError, match="classes is 0"):
        RGBX(root, classes=0)


@pytest.mark.parametrize("line", ["RGB/{}.jpg Label/{}.png", "{}.jpg", "RGB/{}.jpg\tLabel/{}.png"])
def test_other_spellings_of_names(tmp_path, line):
    root = make_rgbx(tmp_path, {"train": ["area_1/v1.5", "area_1/b"]}, line=line)
    data = RGBX(root, "train")
    assert data.ids == ["area_1/v1.5", "area_1/b"]
    assert data[0]["images"].keys() == {"rgb", "hha"}
    assert data[0]["target"]["label"].shape == (24, 32)


def test_another_x(tmp_path):
    root = make_rgbx(tmp_path, NAMES, x="Modal", x_bands=1)
    data = RGBX(root, x="Modal")
    assert (data.modalities["modal"].bands, data.modalities["modal"].scaling) == (
        ("band1",),
        "range",
    )
    with pytest.raises(DataError, match=r"HHA: no such folder \(there is Label, Modal, RGB, test"):
        RGBX(root)
    for file in (root / "Modal").iterdir():
        write(file.with_suffix(".png"), np.full((24, 32), 2000, np.uint16))
        file.unlink()
    deep = RGBX(root, x="Modal")
    assert deep.modalities["modal"].scaling == "image"
    assert deep[0]["images"]["modal"].unique().tolist() == [2000]


def test_other_sizes_are_resized(root):
    label = pixels(root / "Label" / "0.png")
    small = RGBX(root, size=(12, 16))
    assert small[0]["images"]["hha"].shape == (3, 12, 16)
    coarse = label[::2, ::2].astype(int)  # blocks of 6 x 8 pixels
    np.testing.assert_array_equal(
        small[0]["target"]["label"], np.where(coarse == 0, 255, coarse - 1)
    )


def test_what_is_missing(root):
    (root / "HHA" / "1.jpg").unlink()
    (root / "Label" / "2.png").unlink()
    data = RGBX(root, "train")
    assert data.present["hha"].tolist() == [True, False, True, True, True, True]
    assert data[1]["images"].keys() == {"rgb"}
    assert data[2]["target"] == {}
    for file in (root / "Label").iterdir():
        file.unlink()
    assert RGBX(root, "train").targets == {}


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"no such folder; expected ROOT/RGB.*huaaaliu"):
        RGBX(tmp_path / "none")
    with pytest.raises(DataError, match=r"RGB: no such folder \(there is NYUDepthv2\); expected"):
        RGBX(tmp_path)
    for wrong, said in (({"split": "val"}, "split is 'val'"), ({"x": "RGB"}, "x is 'RGB'")):
        with pytest.raises(ConfigError, match=said):
            RGBX(root, **wrong)
    write(root / "RGB" / "0.png", np.zeros((3, 24, 32), np.uint8))
    with pytest.raises(DataError, match="two files for id '0'"):
        RGBX(root)
    (root / "RGB" / "0.png").unlink()
    (root / "test.txt").write_text("5\n1\n")
    with pytest.raises(DataError, match=r"'1' is in train\.txt and in test\.txt"):
        RGBX(root)
    (root / "test.txt").write_text("5\n5\n")
    with pytest.raises(DataError, match=r"test\.txt: '5' comes twice"):
        RGBX(root, "test")
    (root / "test.txt").write_text("a\nb\n")
    with pytest.raises(DataError, match=r"test\.txt: 2 of its 2 names have no picture.*'a'"):
        RGBX(root, "test")
    (root / "test.txt").write_text("\n")
    with pytest.raises(DataError, match=r"test\.txt: names no picture"):
        RGBX(root, "test")
    (root / "test.txt").unlink()
    with pytest.raises(DataError, match=r"test\.txt: no such file; expected"):
        RGBX(root, "test")


def test_bad_files_are_named(root):
    data = RGBX(root, "train")
    (root / "RGB" / "0.jpg").write_bytes((root / "RGB" / "0.jpg").read_bytes()[:50])
    with pytest.raises(BadSampleError, match=r"RGB/0\.jpg"):
        data[0]
    assert RGBX(root, "train").modalities == data.modalities  # the next header tells the size


def test_labels_of_lossy_compression_are_refused(root):
    label = Image.open(root / "Label" / "0.png")
    label.save(root / "Label" / "0.png", format="JPEG")
    with pytest.raises(BadSampleError, match="compressed as JPEG"):
        RGBX(root)[0]


def test_in_worker_processes(root):
    data = RGBX(root, "test")
    loader = DataLoader(
        data,
        batch_size=2,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    (batch,) = loader
    assert batch["ids"] == data.ids
    assert torch.equal(batch["images"]["hha"][1], data[1]["images"]["hha"])
    assert pickle.loads(pickle.dumps(data)).ids == data.ids


@pytest.mark.slow  # the same way as with BigEarthNet
def test_pretrain_and_transfer(root, tmp_path):
    data = [f"--data={RGBX.__name__}", f"--data.root={root}", "--data.classes=5"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--projector.width=16", "--loader.batch_size=3", "--views.size=32"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--bootstrap=0", "--device=cpu", "--size=32"),
            *("--fit.epochs=1", "--loader.batch_size=3", f"--run={tmp_path / 'transfer'}"),
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (6, 2, "mask")
    assert results["modalities"] == ["rgb", "hha"]


@pytest.mark.parametrize("line", ["RGB/{}.jpg\tLabel/{}.png", "RGB/{}.jpg Label/{}.png", "{}"])
def test_names_may_hold_blanks(tmp_path, line):
    names = {"train": ["my room 1", "room"], "test": ["my room 2"]}
    root = make_rgbx(tmp_path / "rooms", names, line=line)
    assert RGBX(root, "train").ids == ["my room 1", "room"]
    (root / "test.txt").write_text("RGB/../../secret.jpg\n")
    with pytest.raises(DataError, match=r"test\.txt: .* leaves the folder"):
        RGBX(root, "test")
