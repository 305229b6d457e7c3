import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from make_bigearthnet_mm import make_bigearthnet_mm, s1_name, s2_name
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import BigEarthNetMM, Collate, SkipBad
from decur.data.bigearthnet import CLASSES_19, CLASSES_43
from decur.data.files import read_image
from decur.errors import BadSampleError, ConfigError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "bigearthnet_mm"
LABELS = [
    ["Pastures", "Vineyards"],
    ["Pastures"],
    ["Sea and ocean", "Airports"],  # the second is in none of the 19
    ["Bare rock"],
]
SPLITS = {"train": [0, 1], "val": [2], "test": [3]}

# The official mapping, typed from the facts of the release: index of 43 to index of 19.
MAP = {
    **{0: 0, 1: 0, 2: 1, 11: 2, 12: 2, 13: 2, 14: 3, 15: 3, 16: 3, 18: 3, 17: 4, 19: 5, 20: 6},
    **{21: 7, 22: 8, 23: 9, 24: 10, 25: 11, 31: 11, 26: 12, 27: 12, 28: 13, 29: 14, 33: 15},
    **{34: 15, 35: 16, 36: 16, 38: 17, 39: 17, 40: 18, 41: 18, 42: 18},
}


@pytest.fixture
def root(tmp_path):
    return make_bigearthnet_mm(tmp_path / "ben", LABELS, SPLITS)


def shown(data, index):
    target = data[index]["target"]["cover"]
    return {
        name for name, value in zip(data.targets["cover"].classes, target, strict=True) if value
    }


def test_pairs_bands_and_labels(root):
    data = BigEarthNetMM(root, split="train")
    assert data.ids == [s2_name(0), s2_name(1)]
    assert data.groups == ["S2A_MSIL2A_20170613T101031"] * 2
    images = data[1]["images"]
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "s1": (2, 120, 120),
        "s2": (12, 120, 120),
    }
    s1, s2 = root / "BigEarthNet-S1-v1.0" / s1_name(1), root / "BigEarthNet-v1.0" / s2_name(1)
    s2_bands, s1_bands = data.modalities["s2"].bands, data.modalities["s1"].bands
    assert torch.equal(images["s1"][1], read_image(s1 / f"{s1.name}_VH.tif")[0])
    for band, file in (("B2", "B02"), ("B8", "B08"), ("B4", "B04")):  # not resized
        read = read_image(s2 / f"{s2.name}_{file}.tif")[0]
        assert torch.equal(images["s2"][s2_bands.index(band)], read)
    coarse = read_image(s2 / f"{s2.name}_B8A.tif")[0]  # every 2 x 2 pixels lie around one of it
    middle = images["s2"][s2_bands.index("B8A")].reshape(60, 2, 60, 2).mean((1, 3))
    assert torch.corrcoef(torch.stack([coarse.ravel(), middle.ravel()]))[0, 1] > 0.9
    assert s1_bands == ("VV", "VH") and len(s2_bands) == 12
    assert data.modalities["s1"].mean == (-12.59, -19.22)
    assert shown(data, 0) == {"Pastures", "Permanent crops"}


def test_splits_and_all_of_them(root):
    assert [len(BigEarthNetMM(root, split)) for split in ("train", "val", "test")] == [2, 1, 1]
    assert len(BigEarthNetMM(root)) == 4
    for split in SPLITS:  # the names that torchgeo gives the files
        (root / f"{split}.csv").rename(root / f"bigearthnet-{split}.csv")
    assert len(BigEarthNetMM(root)) == 4
    (root / "bigearthnet-val.csv").unlink()
    with pytest.raises(DataError, match=r"val\.csv: no such file of a split; expected.*bigearth"):
        BigEarthNetMM(root)
    assert len(BigEarthNetMM(root, "train")) == 2


def test_without_splits_pairs_are_told_by_the_json(tmp_path):
    data = BigEarthNetMM(make_bigearthnet_mm(tmp_path, LABELS[:2]))
    assert data.ids == [s2_name(0), s2_name(1)]
    for index, sample in enumerate(data[i] for i in range(2)):
        folder = tmp_path / "BigEarthNet-S1-v1.0" / s1_name(index)
        assert torch.equal(
            sample["images"]["s1"][0], read_image(folder / f"{folder.name}_VV.tif")[0]
        )
    file = folder / f"{folder.name}_labels_metadata.json"
    about = json.loads(file.read_text())
    file.write_text(json.dumps({**about, "corresponding_s2_patch": s2_name(0)}))
    with pytest.raises(DataError, match=f"{s1_name(0)} and {s1_name(1)} both belong to"):
        BigEarthNetMM(tmp_path)
    file.write_text(json.dumps({"labels": []}))
    with pytest.raises(DataError, match=r"names no `corresponding_s2_patch`"):
        BigEarthNetMM(tmp_path)


def test_classes(root):
    assert (len(CLASSES_43), len(CLASSES_19)) == (43, 19)
    sea, rock = BigEarthNetMM(root, "val"), BigEarthNetMM(root, "test")
    assert shown(sea, 0) == {"Marine waters"}
    assert shown(rock, 0) == set()
    assert shown(BigEarthNetMM(root, "val", classes=43), 0) == {"Sea and ocean", "Airports"}
    assert "target" not in BigEarthNetMM(root, "val", classes=None)[0]


def test_the_43_become_the_19_as_published(tmp_path):
    make_bigearthnet_mm(tmp_path, [["Pastures"]])
    data = BigEarthNetMM(tmp_path)
    file = next((tmp_path / "BigEarthNet-v1.0").glob("*/*.json"))
    for index, name in enumerate(CLASSES_43):
        file.write_text(json.dumps({"labels": [name]}))
        expected = [MAP[index]] if index in MAP else []
        assert np.flatnonzero(data[0]["target"]["cover"]).tolist() == expected


def test_bad_labels_are_one_bad_sample(root):
    data = BigEarthNetMM(root, "train")
    folder = root / "BigEarthNet-v1.0" / s2_name(0)
    file = folder / f"{folder.name}_labels_metadata.json"
    for text, said in (
        ('{"labels": ["Lawn"]}', "label 'Lawn', which is none of the 43"),
        ('{"colour": 1}', "no list `labels`"),
        ("{", "no valid JSON"),
        ("[]", "must hold a JSON mapping"),
        (None, "no such file of labels.*classes to null"),
    ):
        file.write_text(text) if text is not None else file.unlink()
        with pytest.raises(BadSampleError, match=f"{file.name}: .*{said}") as raised:
            data[0]
        assert "\n" not in str(raised.value)
    assert BigEarthNetMM(root, "train", classes=None)[0]["images"].keys() == {"s1", "s2"}
    (folder / f"{folder.name}_B05.tif").unlink()
    with pytest.raises(BadSampleError, match=r"_B05\.tif: no such file"):
        BigEarthNetMM(root, "train", classes=None)[0]


def test_patches_that_are_not_there(root, caplog):
    for file in [*(root / "BigEarthNet-S1-v1.0" / s1_name(0)).iterdir()]:
        file.unlink()
    (root / "BigEarthNet-S1-v1.0" / s1_name(0)).rmdir()
    data = BigEarthNetMM(root, "train")
    assert data.present["s1"].tolist() == [False, True]
    assert data[0]["images"].keys() == {"s2"}
    (root / "train.csv").write_text(f"{s2_name(0)},{s1_name(0)}\n{s2_name(90)},{s1_name(90)}\n")
    assert BigEarthNetMM(root, "train").ids == [s2_name(0)]
    assert "1 of 2 pairs have no files" in caplog.text
    (root / "train.csv").write_text(f"{s2_name(90)},{s1_name(90)}\n")
    with pytest.raises(DataError, match=r"none of the 1 pairs of split 'train'"):
        BigEarthNetMM(root, "train")


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"BigEarthNet-S1-v1\.0: no such folder; expected ROOT/Big"):
        BigEarthNetMM(tmp_path)
    row = f"{s2_name(0)},{s1_name(0)}\n"
    for text, said in (
        (row + row, f"line 2: patch {s2_name(0)} comes twice"),
        (f"{s1_name(0)},{s2_name(0)}\n", "line 1 is .*a row is `S2 patch,S1 patch`"),
        (s2_name(0), "a row is"),
    ):
        (root / "train.csv").write_text(text)
        with pytest.raises(DataError, match=f"train.csv: .*{said}"):
            BigEarthNetMM(root, "train")
    for wrong in ({"split": "Train"}, {"classes": 20}, {"offset": 5}):
        with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is .*choose from"):
            BigEarthNetMM(root, **wrong)


def test_offset_by_metadata_or_by_hand(tmp_path, caplog):
    make_bigearthnet_mm(tmp_path, [["Pastures"]], brightness=3000)
    plain = BigEarthNetMM(tmp_path)[0]["images"]["s2"]
    assert "set offset to 1000" in caplog.text  # it cannot know that the baseline is an old one
    file = next((tmp_path / "BigEarthNet-v1.0").glob("*/*.json"))
    about = json.loads(file.read_text())
    tile = about["tile_source"].replace("N0205", "N0400")
    file.write_text(json.dumps({**about, "tile_source": tile}))
    caplog.clear()
    assert torch.equal(BigEarthNetMM(tmp_path)[0]["images"]["s2"], plain - 1000)
    assert not caplog.records
    assert torch.equal(BigEarthNetMM(tmp_path, offset=0)[0]["images"]["s2"], plain)
    bare = BigEarthNetMM(tmp_path, classes=None, offset=1000)
    assert torch.equal(bare[0]["images"]["s2"], plain - 1000)


def test_in_worker_processes(root):
    data = pickle.loads(pickle.dumps(BigEarthNetMM(root)))
    loader = DataLoader(
        SkipBad(data),
        batch_size=2,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    batches = list(loader)
    assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
    assert batches[0]["target"]["cover"].shape == (2, 19)
    assert torch.equal(batches[1]["images"]["s2"][0], data[2]["images"]["s2"])


def test_pretrain_and_transfer(tmp_path):
    kinds = [["Pastures"], ["Sea and ocean"], ["Pastures", "Sea and ocean"]]
    splits = {"train": range(6), "val": range(6, 9), "test": range(9, 12)}
    root = make_bigearthnet_mm(tmp_path / "ben", kinds * 4, splits)
    data = [f"--data={BigEarthNetMM.__name__}", f"--data.root={root}"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--projector.width=16", "--loader.batch_size=4"),
            *("--views.size=32", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--size=32", "--bootstrap=0", "--device=cpu"),
            f"--run={tmp_path / 'transfer'}",
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (6, 3, "multilabel")
    assert results["modalities"] == ["s1", "s2"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
def test_the_six_real_pairs(caplog):
    data = BigEarthNetMM(
        REAL, s1_folder="BigEarthNet-S1-Example", s2_folder="BigEarthNet-S2-Example"
    )
    assert len(data) == 6 and all(has.all() for has in data.present.values())
    assert not caplog.records  # not shifted
    for index in range(6):
        s1 = json.loads(data.file("s1", index, ending="labels_metadata.json").read_text())
        s2 = json.loads(data.file("s2", index, ending="labels_metadata.json").read_text())
        assert s1["corresponding_s2_patch"] == data.ids[index]
        assert s1["labels"] == s2["labels"]  # each has them
        for corner in ("ulx", "uly", "lrx"):  # and the same place
            assert s1["coordinates"][corner] == s2["coordinates"][corner]
        images = data[index]["images"]
        assert all(image.isfinite().all() for image in images.values())
        assert -30 < images["s1"][1].median() < images["s1"][0].median() < 0  # VH below VV, dB
    index = data.ids.index("S2B_MSIL2A_20170924T93020_69_24")
    assert shown(data, index) == {
        *("Coniferous forest", "Mixed forest", "Transitional woodland, shrub"),
        *("Inland wetlands", "Inland waters"),
    }
