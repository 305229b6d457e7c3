import json
import logging
import math
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from make_folder import write
from make_sunrgbd import make_sunrgbd, rotated
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import SUNRGBD, Collate
from decur.data.hha import hha
from decur.data.sunrgbd import read_depth, read_intrinsics
from decur.errors import BadSampleError, ConfigError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "sun_rgbd"

SCENES = {
    "train": [
        "kv1/NYUdata/NYU0003",
        "kv2/align_kv2/2014-12-18_11-31-54",
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000103",
        "xtion/sun3ddata/brown_bm_1/brown_bm_1/0000207",
    ],
    "test": ["kv1/NYUdata/NYU0001", "realsense/sa/2014_10_21-18"],
}
SMALL = (48, 64)


@pytest.fixture
def root(tmp_path):
    return make_sunrgbd(tmp_path / "sun", SCENES)


def pixels(file):
    return np.asarray(Image.open(file))


def segmentation(root, mode="r+"):
    return h5py.File(root / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat", mode)


def test_every_depth_of_16_bits_is_decoded(tmp_path):
    millimetres = np.arange(1, 65536, dtype=np.uint16)[: 255 * 257].reshape(255, 257)
    write(tmp_path / "d.png", rotated(millimetres))
    expected = np.minimum(millimetres / 1000, 8)
    np.testing.assert_allclose(read_depth(tmp_path / "d.png"), expected, rtol=1e-6)
    millimetres[:8] = 0
    write(tmp_path / "d.png", rotated(millimetres))
    holes = read_depth(tmp_path / "d.png").isnan()
    assert holes[:8].all()
    assert not holes[8:].any()


def test_splits_groups_and_modalities(root):
    data = SUNRGBD(root, "train", size=SMALL)
    assert data.ids == SCENES["train"]
    assert sorted(SUNRGBD(root).ids) == sorted(SCENES["train"] + SCENES["test"])
    assert data.groups[:3] == [*SCENES["train"][:2], "xtion/sun3ddata/brown_bm_1/brown_bm_1"]
    assert data.groups[2] == data.groups[3]
    assert SUNRGBD(root, "test").modalities["rgb"].size == (480, 640)
    assert {name: (m.channels, m.size) for name, m in data.modalities.items()} == {
        "rgb": (3, SMALL),
        "depth": (1, SMALL),
    }


def test_pictures_and_labels(root):
    data = SUNRGBD(root, "train", size=SMALL)
    folder, sample = root / "SUNRGBD" / SCENES["train"][0], data[0]
    rgb = np.moveaxis(pixels(folder / "image/0000000.jpg"), -1, 0)
    np.testing.assert_array_equal(sample["images"]["rgb"], rgb)
    raw = pixels(folder / "depth_bfx/0000000.png").astype(int)
    turned = np.array([[int(f"{v:016b}"[-3:] + f"{v:016b}"[:-3], 2) for v in row] for row in raw])
    np.testing.assert_allclose(sample["images"]["depth"][0], turned / 1000, rtol=1e-6)
    with segmentation(root, "r") as file:
        stored = file[file["SUNRGBD2Dseg/seglabel"][0, 0]][()].T.astype(int)
    label = sample["target"]["label"]
    np.testing.assert_array_equal(label, np.where(stored == 0, 255, stored - 1))
    assert (label[0, 0], label[0, 1]) == (255, 36)
    assert data.targets["label"].classes[36] == "bag"
    assert len(data.targets["label"].classes) == 37
    larger = data[1]  # of another camera
    assert larger["images"]["depth"].shape == (1, *SMALL)
    assert larger["target"]["label"].shape == SMALL


def test_other_labels_are_noticed(root):
    data, bare = (SUNRGBD(root, size=SMALL, classes=classes) for classes in (37, None))
    before, without = data.file_digest(), bare.file_digest()
    os.utime(root / "SUNRGBDtoolbox/Metadata/SUNRGBD2Dseg.mat", (1, 1))
    assert data.file_digest() != before
    assert bare.file_digest() == without  # which reads none
    stored = data.read_bytes(data.ids.index(SCENES["train"][0])).nbytes
    files = (root / "SUNRGBD" / SCENES["train"][0] / name for name in ("image", "depth_bfx"))
    pictures = sum(file.stat().st_size for folder in files for file in folder.iterdir())
    assert pictures < stored < pictures + SMALL[0] * SMALL[1] * 8  # its own label, not all


def test_raw_depth_has_holes(root):
    depth = SUNRGBD(root, "train", filled=False, size=SMALL)[0]["images"]["depth"][0]
    assert depth[:4, :4].isnan().all()
    assert not depth[4:, 4:].isnan().any()


def test_hha_is_of_the_scenes_own_depth_and_intrinsics(root):
    data = SUNRGBD(root, "train", depth="hha", size=SMALL)
    folder = root / "SUNRGBD" / SCENES["train"][0]
    expected = hha(read_depth(folder / "depth_bfx/0000000.png"), (529.5, 529.5, 32.0, 24.0))
    image = data[0]["images"]["hha"]
    assert torch.equal(image, expected)
    assert list(data.modalities) == ["rgb", "hha"]
    resized = data[1]["images"]["hha"]  # 56 x 72 pixels
    assert (resized.dtype, resized.shape) == (torch.uint8, (3, *SMALL))
    raw = SUNRGBD(root, "train", depth="hha", filled=False, size=(24, 32))[0]["images"]["hha"]
    assert (raw[:, :2, :2] == 0).all()
    assert raw[0, 2:].min() >= image[0].min()  # no hole dims what lies beside it


def test_intrinsics(tmp_path):
    file = tmp_path / "intrinsics.txt"
    with pytest.raises(BadSampleError, match="needs intrinsics, which SUN RGB-D keeps here"):
        read_intrinsics(file)
    file.write_text("500 0 320\n0 501 240\n0 0 1\n")
    assert read_intrinsics(file) == (500, 501, 319, 239)
    for wrong, said in (("500 0 320", "must hold"), ("a b", "other than numbers")):
        file.write_text(wrong)
        with pytest.raises(BadSampleError, match=said):
            read_intrinsics(file)


def test_without_labels_or_toolbox(root):
    shutil.rmtree(root / "SUNRGBDtoolbox")
    data = SUNRGBD(root, classes=None, size=SMALL)
    assert len(data) == 6
    assert data.targets == {}
    assert "target" not in data[0]
    with pytest.raises(DataError, match=r"SUNRGBD2Dseg\.mat: no such file; .* classes to null"):
        SUNRGBD(root)
    with pytest.raises(DataError, match=r"allsplit\.mat: no such file; expected"):
        SUNRGBD(root, "train", classes=None)


def test_what_is_missing(root, caplog):
    train = root / "SUNRGBD" / SCENES["train"][0]
    shutil.rmtree(train / "depth_bfx")
    shutil.rmtree(root / "SUNRGBD" / SCENES["train"][3])
    data = SUNRGBD(root, "train", size=SMALL)
    assert data.present["depth"].tolist() == [False, True, True]
    assert data[0]["images"].keys() == {"rgb"}
    assert "1 of 4 scenes have no folder" in caplog.text


def test_bad_files_are_named(root):
    data = SUNRGBD(root, "train", size=SMALL)
    first, second = (root / "SUNRGBD" / scene for scene in SCENES["train"][:2])
    write(first / "depth_bfx/0000000.png", np.full((48, 64), 90, np.uint8))
    with pytest.raises(BadSampleError, match=r"0000000\.png: is 8-bit, not 16-bit depth"):
        data[0]
    write(first / "depth_bfx/1.png", np.full((48, 64), 9000, np.uint16))
    with pytest.raises(BadSampleError, match=r"holds two pictures of one scene, 0000000\.png and"):
        data[0]
    (second / "image" / "0000001.jpg").write_bytes(b"")
    with pytest.raises(BadSampleError, match=r"0000001\.jpg: is empty"):
        data[1]
    (second / "image" / "0000001.jpg").unlink()
    with pytest.raises(BadSampleError, match="image: is empty; unpack"):
        data[1]
    del data  # which holds the file open
    with segmentation(root) as file:
        file[file["SUNRGBD2Dseg/seglabel"][2, 0]][0, 0] = 38
    with pytest.raises(BadSampleError, match=r"row 2 holds no label of 37 classes .* up to 38"):
        SUNRGBD(root, "train", size=SMALL)[2]


def test_depth_in_another_unit_warns(root, caplog):
    SUNRGBD(root, "train", size=SMALL)
    assert not caplog.records
    for scene in SCENES["train"][:3]:
        for file in (root / "SUNRGBD" / scene / "depth_bfx").iterdir():
            write(file, rotated(np.full((48, 64), 150, np.uint16)))  # as if it were in cm
    with caplog.at_level(logging.WARNING):
        SUNRGBD(root, "train", size=SMALL)
    assert "median depth of 3 of 4 pictures is outside 0.2 to 20 m, of the first 0.15" in (
        caplog.text
    )


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"SUNRGBD: no such folder; expected .*princeton"):
        SUNRGBD(tmp_path)
    for wrong, said in (
        ({"split": "val"}, "split is 'val'; choose from train, test"),
        ({"depth": "mm"}, "depth is 'mm'; choose from metres, hha"),
        ({"classes": 13}, "classes is 13; choose from 37"),
    ):
        with pytest.raises(ConfigError, match=said):
            SUNRGBD(root, **wrong)
    toolbox = root / "SUNRGBDtoolbox"
    savemat(toolbox / "Metadata/SUNRGBDMeta.mat", {"SUNRGBDMeta": {"rgbpath": "SUNRGBD/a/image/b"}})
    with pytest.raises(DataError, match=r"SUNRGBDMeta\.mat: lists 1 scenes, SUNRGBD2Dseg\.mat hol"):
        SUNRGBD(root)
    savemat(toolbox / "traintestSUNRGBD/allsplit.mat", {"alltrain": np.array(["a"], object)})
    with pytest.raises(DataError, match=r"allsplit\.mat: has no variable 'alltest'"):
        SUNRGBD(root, "test", classes=None)
    with pytest.raises(DataError, match=r"none of its 6 scenes is in split 'train', for example"):
        SUNRGBD(root, "train", classes=None)
    (toolbox / "traintestSUNRGBD/allsplit.mat").write_bytes(b"MATLAB 5.0 MAT-file")
    with pytest.raises(DataError, match=r"allsplit\.mat: cannot be read as \.mat"):
        SUNRGBD(root, "train", classes=None)
    (toolbox / "Metadata/SUNRGBD2Dseg.mat").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match=r"SUNRGBD2Dseg\.mat: cannot be read as \.mat 7\.3"):
        SUNRGBD(root)
    shutil.rmtree(root / "SUNRGBD")
    (root / "SUNRGBD" / "kv1").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no scene in what is there \(kv1\); expected"):
        SUNRGBD(root)


@pytest.mark.parametrize("context", ["forkserver", "fork"])
def test_in_worker_processes(root, context):
    data = SUNRGBD(root, "train", size=SMALL)
    first = data[0]  # the file of labels is open here
    loader = DataLoader(
        data,
        batch_size=1,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=2,
        multiprocessing_context=context,
    )
    batches = list(loader)
    assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
    for row, batch in enumerate(batches):
        assert torch.equal(batch["target"]["label"][0], data[row]["target"]["label"])
    assert torch.equal(batches[0]["images"]["depth"][0], first["images"]["depth"])
    assert pickle.loads(pickle.dumps(data))._labels._opened is None


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
def test_real_scenes(tmp_path):
    (tmp_path / "SUNRGBD").mkdir()
    (tmp_path / "SUNRGBD" / "kv2").symlink_to(REAL)
    data = SUNRGBD(tmp_path, classes=None)
    assert data.ids == ["kv2/2014-12-18_11-31-54_260595134347", "kv2/img_0063"]
    own = SUNRGBD(tmp_path, classes=None, size=(530, 730))[0]["images"]["depth"]
    assert not own.isnan().any()  # filled
    assert math.isclose(own.median(), 2.378, abs_tol=1e-3)
    raw = SUNRGBD(tmp_path, classes=None, filled=False, size=(530, 730))[0]["images"]["depth"]
    assert math.isclose(raw.isnan().float().mean(), 0.134, abs_tol=1e-3)
    coded = SUNRGBD(tmp_path, classes=None, depth="hha")[1]["images"]
    assert (coded["rgb"].shape, coded["hha"].shape) == ((3, 480, 640),) * 2
    assert len(coded["hha"][2].unique()) > 50  # surfaces at many angles


@pytest.mark.slow  # the same way as with BigEarthNet
def test_pretrain_and_transfer(root, tmp_path):
    data = [f"--data={SUNRGBD.__name__}", f"--data.root={root}", "--data.size=[48,64]"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--data.depth=hha", "--data.classes=null", "--views.size=32"),
            *("--projector.width=16", "--loader.batch_size=2"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--bootstrap=0", "--device=cpu", "--size=32"),
            *("--data.depth=hha", "--fit.epochs=1", "--loader.batch_size=2"),
            f"--run={tmp_path / 'transfer'}",
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (4, 2, "mask")
    assert results["modalities"] == ["rgb", "hha"]


def test_masks_are_tested_at_their_own_size(root, tmp_path):
    """The second scene of a split is larger; every pixel that the toolbox labels counts once."""
    own = SUNRGBD(root, split="test", size=SMALL, resize_labels=False)
    stretched = SUNRGBD(root, split="test", size=SMALL)
    sizes = [tuple(own[i]["target"]["label"].shape) for i in range(2)]
    assert sizes == [(48, 64), (56, 72)] and own[1]["images"]["rgb"].shape[1:] == SMALL
    assert stretched[1]["target"]["label"].shape == SMALL
    common = [f"--data.root={root}", "--data=SUNRGBD", "--data.size=[48,64]", "--modalities=rgb"]
    common += ["--train_split=train", "--test_split=test", "--freeze=false", "--fit.steps=1"]
    common += ["--encoder.name=test_resnet", "--loader.workers=0", "--loader.batch_size=4"]
    main(["transfer", *common, "--test_data.resize_labels=false", f"--run={tmp_path / 'own'}"])
    found = json.loads((tmp_path / "own" / "results.json").read_text())
    pixels = sum(int((own[i]["target"]["label"] != 255).sum()) for i in range(2))
    assert sum(row["n"] for row in found["by_class"].values()) == pixels
