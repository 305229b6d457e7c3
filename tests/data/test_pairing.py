import json
import logging
import re

import numpy as np
import pytest
from make_folder import make_folder, write
from PIL import Image

from decur.data import PairedFolder
from decur.data.pairing import named_as_labels
from decur.errors import ConfigError, DataError

IDS = ["Ghana_1", "Ghana_2", "Spain_1"]


def suffixed(tmp_path):
    folders = {"S1": "_S1Hand", "S2": "_S2Hand"}
    return make_folder(tmp_path, {n: [f"{i}{s}" for i in IDS] for n, s in folders.items()})


def test_names_that_would_pair_are_proposed_and_pair(tmp_path):
    root = suffixed(tmp_path)
    pattern = '{"S1": "{id}_S1Hand", "S2": "{id}_S2Hand"}'
    with pytest.raises(DataError, match="no id has two modalities") as refused:
        PairedFolder(root)
    assert f"3 would with --data.pattern '{pattern}'" in str(refused.value)
    assert PairedFolder(root, pattern={"S1": "{id}_S1Hand", "S2": "{id}_S2Hand"}).ids == IDS
    assert PairedFolder(root, pattern="{id}_{sensor}Hand").ids == IDS


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a_%s", "b_%s"), ("a_{id}", "b_{id}")),
        (("%s", "%s-dem"), ("{id}", "{id}-dem")),
        (("x_s1_%s", "x_s2_%s"), None),  # what both begin with may stay or not
        (("r_%s_s1_p7", "r_%s_s2_p7"), None),
    ],
)
def test_proposals_pair_what_they_say(tmp_path, names, expected):
    ids = {n: [name % i for i in (10, 11, 25)] for n, name in zip("uv", names, strict=True)}
    root = make_folder(tmp_path, ids, extension=".png")
    with pytest.raises(DataError, match=r"3 would with --data\.pattern '.*', or say") as refused:
        PairedFolder(root)
    pattern = json.loads(str(refused.value).split("pattern '")[1].split("'")[0])
    if expected:
        assert tuple(pattern.values()) == expected
    data = PairedFolder(root, pattern=pattern)
    assert len(data) == 3 and all(has.all() for has in data.present.values())


def test_other_reasons_why_names_do_not_pair(tmp_path):
    for one, other in (("Tile1", "tile1"), ("007", "7")):
        root = make_folder(tmp_path / one, {"s1": [one], "s2": [other]})
        with pytest.raises(DataError, match="differ only in capitals or leading zeros"):
            PairedFolder(root)
    days = {s: [f"p{i}_2020010{i + more}" for i in (1, 2)] for s, more in (("s1", 0), ("s2", 6))}
    with pytest.raises(
        DataError, match=re.escape("""pattern '{"s1": "{id}_*", "s2": "{id}_*"}'""")
    ):
        PairedFolder(make_folder(tmp_path / "days", days))
    root = make_folder(tmp_path / "deep", {"data/train/s1": ["a"]})
    with pytest.raises(DataError, match=r"pictures lie in .*train/s1: give the folder above"):
        PairedFolder(root)


def test_words_between_two_parts_of_an_id_are_left_out(tmp_path):
    ids = {s: [f"ROI{r}_{s}_p{p}" for r in (1, 2) for p in (3, 4)] for s in ("s1", "s2")}
    root = make_folder(tmp_path, ids)
    with pytest.raises(DataError, match=r"4 would with .*\{id\}_s1_\{id\}"):
        PairedFolder(root)
    data = PairedFolder(root, pattern="{id}_{sensor}_{id}")
    assert data.ids == ["ROI1_p3", "ROI1_p4", "ROI2_p3", "ROI2_p4"]


@pytest.mark.parametrize("pattern", ["{split}/{sensor}/{id}", "{sensor}/{split}/{id}"])
def test_folders_of_splits(tmp_path, pattern):
    for split, ids in {"train": ["a", "b"], "val": ["a", "c"]}.items():
        for sensor in ("s1", "s2"):
            home = pattern.replace("{split}", split).replace("{sensor}", sensor)
            for id_ in ids if sensor == "s1" else ids[1:]:
                write(tmp_path / home.replace("{id}", f"{id_}.png"), np.eye(8, dtype=np.uint8))
    with pytest.raises(DataError, match=r"no sub-folder with pictures.*pictures lie in") as refused:
        PairedFolder(tmp_path)
    assert f"--data.pattern '{pattern}'" in str(refused.value)
    data = PairedFolder(tmp_path, pattern=pattern)
    assert data.ids == ["train_a", "train_b", "val_a", "val_c"]
    assert data.present["s2"].tolist() == [False, True, False, True]
    assert PairedFolder(tmp_path, pattern=pattern, split="val").ids == ["val_a", "val_c"]
    with pytest.raises(DataError, match="no split 'dev'; choose from train, val"):
        PairedFolder(tmp_path, pattern=pattern, split="dev")


@pytest.mark.parametrize(
    ("place", "pattern", "ids"),
    [
        ("{sensor}/2020{i}/p", "{sensor}/{id}/{id}", ["20200_p", "20201_p", "20202_p"]),
        ("2020{i}/{sensor}/p", "{id}/{sensor}/{id}", ["20200_p", "20201_p", "20202_p"]),
        ("2020{i}/{sensor}/{i}", "*/{sensor}/{id}", ["0", "1", "2"]),
        ("p{i}/{sensor}", "{id}/{sensor}", ["p0", "p1", "p2"]),
        ("p{i}/p{i}_{sensor}", "{id}/*_{sensor}", ["p0", "p1", "p2"]),
        ("a_p{i}_{sensor}", "{id}_{sensor}", ["a_p0", "a_p1", "a_p2"]),
        ("{sensor}-{i}", "{sensor}-{id}", ["0", "1", "2"]),
    ],
)
def test_other_layouts_are_told_with_the_pattern_that_reads_them(tmp_path, place, pattern, ids):
    for i in range(3):
        for sensor, bands in (("rgb", 3), ("ir", 1)):
            file = place.replace("{i}", str(i)).replace("{sensor}", sensor)
            write(tmp_path / f"{file}.png", np.full((bands, 8, 8), 10 * bands + i, np.uint8))
    with pytest.raises(DataError, match=re.escape(f"--data.pattern '{pattern}'")):
        PairedFolder(tmp_path)
    data = PairedFolder(tmp_path, pattern=pattern)
    assert data.ids == ids
    means = [{n: float(x.float().mean()) for n, x in data[i]["images"].items()} for i in range(3)]
    assert means == [{"ir": 10 + i, "rgb": 30 + i} for i in range(3)]


def test_more_folders_than_names_may_be_places(tmp_path, caplog):
    names = ("red", "infrared")
    root = make_folder(tmp_path, {f"place{i}": names for i in range(5)})
    assert len(PairedFolder(root)) == 2
    assert "5 folders hold files of only 2 names (infrared, red); if folders are" in caplog.text
    make_folder(root, {f"place{i}": names for i in range(13)})
    with pytest.raises(DataError, match=r"give --data\.pattern '\{id\}/\{sensor\}'"):
        PairedFolder(root)


def test_masks_of_splits_are_found_by_the_pattern_of_sensors(tmp_path):
    for split in ("train", "val"):
        for name in ("rgb", "mask"):
            write(tmp_path / split / name / "a.png", np.eye(8, dtype=np.uint8))
    data = PairedFolder(tmp_path, pattern="{split}/{sensor}/{id}")
    assert (
        list(data.modalities) == ["rgb"]
        and data[1]["target"]["mask"].tolist() == np.eye(8).tolist()
    )


def test_files_of_one_band_are_no_pictures_of_their_own(tmp_path):
    ids = {"s1": ["a_vv", "a_vh"], "s2": [f"a_B{b}" for b in ("02", "03", "8A")]}
    with pytest.raises(DataError, match=r"s2 holds one file a band .*rio stack a_B02\.tif a_B03"):
        PairedFolder(make_folder(tmp_path / "flat", ids))
    root = make_folder(tmp_path / "deep", {f"{s}/a": names for s, names in ids.items()})
    with pytest.raises(DataError, match=r"s1/a holds one file a band .*rio stack"):
        PairedFolder(root)


def test_links_in_circles_and_what_systems_leave_behind(tmp_path, caplog):
    root = make_folder(tmp_path, {"rgb": IDS, "__MACOSX/rgb": ["._a.png"]})
    (root / "@eaDir").mkdir()
    (root / "all").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    (root / "rgb" / "self.txt").symlink_to(root / "rgb" / "self.txt")
    (root / "s2").mkdir()
    (root / "s2" / "a.vrt").write_text("<VRTDataset/>")
    data = PairedFolder(root)
    assert data.describe().endswith("left out: all/ (no pictures), s2/ (1 .vrt, not read)")
    assert "s2: holds 1 .vrt, which are not read, and is not trained on" in caplog.text


@pytest.mark.parametrize("pattern", ["s1", "../{id}", "/data/{id}", "{id}/x", "a/{id}"])
def test_patterns_stay_below_the_folder_and_hold_an_id(tmp_path, pattern):
    with pytest.raises(ConfigError, match="pattern: "):
        PairedFolder(make_folder(tmp_path, {"s1": IDS, "s2": IDS}), pattern=pattern)


def test_few_pairs_are_told_of_and_hardly_any_refused(tmp_path, caplog):
    numbers = [str(i) for i in range(100)]
    root = make_folder(tmp_path, {"s1": numbers[:40], "s2": numbers[30:]}, size=1)
    assert len(PairedFolder(root)) == 100
    assert "10 of 100 samples have two modalities (40 of s1, 70 of s2)" in caplog.text
    for id_ in numbers[31:40]:
        (root / "s1" / f"{id_}.png").unlink()
    with pytest.raises(DataError, match=r"only 1 of 100 ids.*or say --data\.missing keep"):
        PairedFolder(root)
    assert len(PairedFolder(root, missing="keep")) == 100


def test_labels_are_no_sensor_unless_named(tmp_path, caplog):
    root = make_folder(tmp_path, {"rgb": IDS, "Labels": IDS}, size=32)
    for id_ in IDS:
        write(root / "cover" / f"{id_}.png", np.arange(1024, dtype=np.uint8).reshape(32, 32) % 9)
    (root / "notes").mkdir()
    (root / "notes" / "read.me").write_text("x")
    (root / "rgb" / "a.pdf").write_text("x")
    with caplog.at_level(logging.WARNING, "decur"):
        data = PairedFolder(root)
    assert list(data.modalities) == ["rgb"]
    assert "Labels: holds labels by its name and is not trained on" in caplog.text
    assert "cover: holds labels by its 9 different values" in caplog.text
    for part in ("notes/ (no pictures)", "1 .pdf in rgb/", "Labels/ (labels by its name)"):
        assert part in data.describe()
    named = {name: {"bands": ["x"], "scaling": "range"} for name in ("rgb", "Labels")}
    assert list(PairedFolder(root, named).modalities) == ["rgb", "Labels"]
    as_mask = PairedFolder(root, pattern={"mask": "cover/{id}"})
    assert len(as_mask.targets["mask"].classes) == 9 and "mask" in as_mask[0]["target"]


@pytest.mark.parametrize("kind", ["palette", "colours", "photograph"])
def test_few_colours_are_labels_too(tmp_path, kind, caplog):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "s2": ["a", "b"]})
    (root / "cover").mkdir()
    rng = np.random.default_rng(0)
    for id_ in "ab":
        indices = rng.integers(0, 5, (32, 32)).astype(np.uint8)
        picture = Image.fromarray(indices, "P")
        picture.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
        if kind == "photograph":
            picture = Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8))
        (picture if kind == "palette" else picture.convert("RGB")).save(root / f"cover/{id_}.png")
    (root / "real").mkdir()
    for id_ in "ab":  # whole numbers, stored as others
        np.save(root / "real" / f"{id_}.npy", rng.integers(0, 3, (32, 32)).astype(np.float32))
    data = PairedFolder(root)
    told = {"palette": "5 different values", "colours": "5 different colours", "photograph": ""}
    assert ("cover" in data.modalities) == (kind == "photograph")
    assert told[kind] in caplog.text
    assert "real: holds labels by its 3 different values" in caplog.text


@pytest.mark.parametrize("name", ["LabelHand", "SegmentationClass", "classes", "Reference_Maps"])
def test_names_of_labels(name):
    assert named_as_labels(name)
    assert not named_as_labels(f"x{name.lower()}")
