import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from make_nyu import make_nyu
from scipy.io import loadmat, savemat
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import Collate, NYUDepthV2
from decur.data.hha import hha
from decur.errors import BadSampleError, ConfigError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "nyu_depth_v2"

TRAIN, TEST = [3, 4, 5, 6], [1, 2]


@pytest.fixture
def root(tmp_path):
    return make_nyu(tmp_path / "nyu", TRAIN, TEST)


def labeled(root, mode="r+"):
    return h5py.File(root / "nyu_depth_v2_labeled.mat", mode)


def test_rows_of_the_splits(root):
    data = NYUDepthV2(root, "train")
    assert data.ids == ["0003", "0004", "0005", "0006"]
    assert data.groups == ["kitchen_0001", "kitchen_0001", "kitchen_0002", "kitchen_0002"]
    assert len(NYUDepthV2(root)) == 6
    with labeled(root, "r") as file:
        # (N, 3, width, height) as stored
        image, metres = file["images"][3].transpose(0, 2, 1), file["depths"][3].T
        label = file["labels"][3].T
    sample = data[1]
    assert sample["images"]["rgb"].dtype == torch.uint8
    np.testing.assert_array_equal(sample["images"]["rgb"], image)
    np.testing.assert_array_equal(sample["images"]["depth"][0], metres)
    mapping = loadmat(root / "classMapping40.mat")["mapClass"][0]
    expected = [[255 if c == 0 else mapping[c - 1] - 1 for c in row] for row in label.astype(int)]
    np.testing.assert_array_equal(sample["target"]["label"], expected)
    assert data.targets["label"].classes[::39] == ("class 1", "class 40")


def test_another_file_is_noticed(root):
    data = NYUDepthV2(root)
    before, again = data.file_digest(), NYUDepthV2(root).file_digest([0, 1])
    assert again == data.file_digest([0, 1])
    os.utime(root / "nyu_depth_v2_labeled.mat", (1, 1))
    assert data.file_digest() != before and data.file_digest([0, 1]) != again


def test_raw_depth_and_sizes(root):
    data = NYUDepthV2(root, "test", filled=False)
    depth = data[0]["images"]["depth"][0]
    assert depth[:4, :4].isnan().all()
    assert not depth[4:, 4:].isnan().any()
    small = NYUDepthV2(root, "test", size=(24, 32))
    assert small.modalities["depth"].size == (24, 32)
    label = data[0]["target"]["label"]
    assert torch.equal(small[0]["target"]["label"][1:, 1:], label[::2, ::2][1:, 1:])  # 6 x 8 blocks


def test_hha(root, tmp_path):
    with pytest.raises(DataError, match=r"pictures are 48 x 64; the known intrinsics are of 480"):
        NYUDepthV2(root, depth="hha")
    data = NYUDepthV2(make_nyu(tmp_path / "whole", [2], [1], (480, 640)), "train", depth="hha")
    with labeled(tmp_path / "whole", "r") as file:
        metres = torch.from_numpy(file["depths"][1].T)
    expected = hha(metres, (518.858, 519.470, 324.582, 252.736))
    assert torch.equal(data[0]["images"]["hha"], expected)
    assert data.modalities["hha"].bands == ("disparity", "height", "angle")


def test_without_labels(root):
    (root / "classMapping40.mat").unlink()
    (root / "splits.mat").unlink()
    data = NYUDepthV2(root, classes=None)
    assert data.targets == {}
    assert "target" not in data[0]
    with pytest.raises(DataError, match=r"classMapping40\.mat: no such file; .* classes to null"):
        NYUDepthV2(root)
    with pytest.raises(DataError, match=r"splits\.mat: no such file; expected .*nyuv2-meta-data"):
        NYUDepthV2(root, "train", classes=None)


def test_bad_rows_are_named(root):
    with labeled(root) as file:
        file["depths"][0] = 0
        file["labels"][1, 0, 0] = 895
    data = NYUDepthV2(root, "test")
    with pytest.raises(BadSampleError, match=r"labeled\.mat: row 0 of depths has no depth"):
        data[0]
    with pytest.raises(BadSampleError, match=r"row 1 of labels has class 895, .* knows 1 to 894"):
        data[1]


def test_a_truncated_file(root):
    file = root / "nyu_depth_v2_labeled.mat"
    file.write_bytes(file.read_bytes()[:-3000])
    with pytest.raises(DataError, match=r"labeled\.mat: cannot be read as \.mat 7\.3 .*truncated"):
        NYUDepthV2(root)


def test_depth_in_another_unit_warns(root, caplog):
    NYUDepthV2(root)
    assert not caplog.records
    with labeled(root) as file:
        file["depths"][:] *= 1000
    with caplog.at_level(logging.WARNING):
        NYUDepthV2(root)
    assert "median depth of 6 of 6 pictures is outside 0.2 to 20 m" in caplog.text


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"labeled\.mat: no such file; expected .*2\.8 GB"):
        NYUDepthV2(tmp_path)
    for wrong, said in (
        ({"split": "val"}, "split is 'val'; choose from train, test"),
        ({"depth": "mm"}, "depth is 'mm'; choose from metres, hha"),
        ({"classes": 13}, "classes is 13; choose from 40"),
    ):
        with pytest.raises(ConfigError, match=said):
            NYUDepthV2(root, **wrong)
    savemat(root / "splits.mat", {"trainNdxs": np.array([[7]])})
    with pytest.raises(DataError, match=r"has pictures 7 to 7, nyu_depth_v2_labeled\.mat 1 to 6"):
        NYUDepthV2(root, "train")
    with pytest.raises(DataError, match=r"splits\.mat: has no variable 'testNdxs'"):
        NYUDepthV2(root, "test")
    with labeled(root) as file:
        del file["rawDepths"], file["images"]
    with pytest.raises(DataError, match=r"has no 'images' \(it has #refs#, depths, labels, scenes"):
        NYUDepthV2(root)
    with labeled(root) as file:
        file["images"] = np.zeros((6, 48, 64, 3), np.uint8)
    with pytest.raises(DataError, match=r"images have shape \(6, 48, 64, 3\), not \(N, 3, width"):
        NYUDepthV2(root)


@pytest.mark.parametrize("context", ["forkserver", "fork"])
def test_in_worker_processes(root, context):
    data = NYUDepthV2(root)
    expected = [data[row]["images"]["rgb"] for row in range(len(data))]  # the file is open here
    loader = DataLoader(
        data,
        batch_size=1,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=2,
        multiprocessing_context=context,
    )
    for batch, image in zip(loader, expected, strict=True):
        assert torch.equal(batch["images"]["rgb"][0], image)
    assert pickle.loads(pickle.dumps(data))._data._opened is None


def test_a_forked_process_opens_the_file_by_itself(root, monkeypatch):
    data = NYUDepthV2(root)
    parents = data._data._open()
    assert data._data._open() is parents
    monkeypatch.setattr("os.getpid", lambda: -1)
    assert data._data._open() is not parents


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
def test_real_splits_and_mapping(tmp_path):
    root = make_nyu(tmp_path, range(1, 1450), [], (8, 8))
    for name in ("splits.mat", "classMapping40.mat"):
        shutil.copy(REAL / name, root / name)
    with labeled(root) as file:
        file["labels"][0] = 21  # "wall" of the 894
        file["labels"][0, 0, 0] = 11  # "floor"
    train, test = NYUDepthV2(root, "train"), NYUDepthV2(root, "test")
    assert (len(train), len(test)) == (795, 654)
    assert not set(train.ids) & set(test.ids)
    assert test.ids[:3] == ["0001", "0002", "0009"]
    classes = train.targets["label"].classes
    assert (len(classes), classes[0], classes[39]) == (40, "wall", "otherprop")
    label = test[0]["target"]["label"]
    assert (label[0, 0], label[1, 1]) == (classes.index("floor"), classes.index("wall"))


@pytest.mark.slow  # the same way as with BigEarthNet
def test_pretrain_and_transfer(root, tmp_path):
    data = [f"--data={NYUDepthV2.__name__}", f"--data.root={root}"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--projector.width=16", "--loader.batch_size=2", "--views.size=32"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--bootstrap=0", "--device=cpu", "--size=32"),
            *("--fit.epochs=1", "--loader.batch_size=2", f"--run={tmp_path / 'transfer'}"),
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (4, 2, "mask")
    assert results["modalities"] == ["rgb", "depth"]
