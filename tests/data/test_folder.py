import logging
import os
import shutil
import unicodedata

import numpy as np
import pytest
import torch
from make_folder import make_folder, write, write_raster
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from decur import Modality
from decur.data import Collate, PairedFolder, SkipBad
from decur.data.files import read_image, resize
from decur.data.stats import compute_stats
from decur.errors import BadSampleError, ConfigError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

IDS = ["a", "b", "c", "d"]


def test_pairs_by_id_not_by_order(tmp_path):
    root = make_folder(tmp_path, {"s1": ["b", "a", "d"], "s2": ["c", "a", "b", "d"]})
    data = PairedFolder(root)
    assert data.ids == IDS
    assert data.present["s1"].tolist() == [True, True, False, True]
    for index, id_ in enumerate(data.ids):
        sample = data[index]
        assert sample["id"] == id_
        for name, image in sample["images"].items():
            assert torch.equal(image, read_image(root / name / f"{id_}.png"))
    assert "s1" not in data[2]["images"]
    assert "1 absent" in data.describe()
    assert "4 samples" in data.describe()
    assert "target" not in data[0]


def test_drop_keeps_complete_samples(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "s2": ["b", "c"]})
    assert PairedFolder(root, missing="drop").ids == ["b"]
    with pytest.raises(DataError, match="missing is 'no'"):
        PairedFolder(root, missing="no")


def test_three_modalities_of_different_formats(tmp_path):
    make_folder(tmp_path, {"rgb": IDS}, size=16, bands={"rgb": 3}, extension=".jpg")
    make_folder(tmp_path, {"s1": IDS[:3], "dem": IDS[1:]}, extension=".tif", size=8)
    data = PairedFolder(tmp_path)
    assert {n: (m.channels, m.size) for n, m in data.modalities.items()} == {
        "dem": (1, (8, 8)),
        "rgb": (3, (16, 16)),
        "s1": (1, (8, 8)),
    }
    loader = DataLoader(data, 4, collate_fn=Collate(data.modalities, data.targets))
    batch = next(iter(loader))
    assert batch["images"]["rgb"].shape == (4, 3, 16, 16)
    assert batch["present"]["dem"].tolist() == [False, True, True, True]


def test_guesses_scaling_augmentation_and_band_names(tmp_path, caplog):
    rng = np.random.default_rng(0)
    pixels = rng.normal(-12, 3, (5, 2, 8, 8)).astype(np.float32)
    for index, image in enumerate(pixels):
        write_raster(tmp_path / "S1" / f"{index}.tif", image, names=("VV", "VH"))
        write(tmp_path / "elevation" / f"{index}.npy", 100 * image[0])
        write(tmp_path / "rgb" / f"{index}.png", rng.integers(0, 255, (3, 8, 8), dtype=np.uint8))
    with caplog.at_level(logging.INFO, "decur"):
        data = PairedFolder(tmp_path)
    s1, dem, rgb = (data.modalities[name] for name in ("S1", "elevation", "rgb"))
    assert "decur stats" in caplog.text
    assert (s1.bands, s1.scaling, s1.augmentation, s1.cut) == (("VV", "VH"), "standard", "sar", 2)
    np.testing.assert_allclose(s1.mean, pixels.mean((0, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(s1.std, pixels.std((0, 2, 3)), rtol=1e-5)
    assert (dem.bands, dem.scaling, dem.augmentation) == (("band1",), "standard", "dem")
    assert (rgb.scaling, rgb.value_range, rgb.augmentation) == ("range", (0, 255), "optical")
    assert rgb.bands == ("band1", "band2", "band3")


def test_modalities_given_or_in_the_folder(tmp_path):
    root = make_folder(tmp_path, {"rgb": IDS, "s1": IDS, "notes": IDS}, bands={"rgb": 3})
    given = {"s1": {"bands": ["VV"], "scaling": "range", "augmentation": "sar"}, "rgb": "rgb"}
    data = PairedFolder(root, given)
    assert list(data.modalities) == ["s1", "rgb"]
    assert data.modalities["rgb"].bands == ("R", "G", "B")
    (root / "modalities.yaml").write_text("rgb: rgb\n")
    assert list(PairedFolder(root).modalities) == ["rgb"]
    with pytest.raises(DataError, match=r"'dem' has no folder; there is notes, rgb, s1"):
        PairedFolder(root, {"dem": "dem"})
    with pytest.raises(ConfigError, match="no such file"):
        PairedFolder(root, root / "other.yaml")


def test_other_sizes_are_resized_to_the_modality(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "b"], "s2": ["a", "b", "c"]}, size=8)
    write(root / "s1" / "c.png", np.full((16, 16), 7, np.uint8))
    data = PairedFolder(root)
    image = data[2]["images"]["s1"]
    assert image.dtype == torch.uint8
    assert torch.equal(image, torch.full((1, 8, 8), 7, dtype=torch.uint8))
    named = PairedFolder(root, {"s1": {"bands": ["x"], "scaling": "range", "size": [4, 4]}})
    assert named[0]["images"]["s1"].shape == (1, 4, 4)


def test_resize_keeps_nan_where_it_is():
    x = torch.rand(2, 16, 16)
    plain = interpolate(x[None], (8, 8), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(resize(x, (8, 8)), plain)
    x[:, :8, :8] = torch.nan
    out = resize(x, (8, 8))
    assert out[:, :3, :3].isnan().all()
    assert not out[:, 5:].isnan().any()
    assert not out[:, :, 5:].isnan().any()
    constant = torch.where(x.isnan(), x, torch.tensor(3.0))
    valid = resize(constant, (8, 8))
    torch.testing.assert_close(valid[~valid.isnan()], torch.full_like(valid[~valid.isnan()], 3.0))


def test_label_kinds_are_told_by_cells_or_suffix(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS})
    (root / "labels.csv").write_text(
        "id,kind,level,height,cover,grade:scalar,tag:multilabel,note\n"
        "a,town,10,1.5,water;forest,1,x,one\n"
        "b,field,2,2,forest,2,,one\n"
        "c,,,,;,,y,one\n"
        "other,zoo,3,0,bare|water,3,z,one\n"
    )
    data = PairedFolder(root)
    kinds = {name: (target.kind, target.classes) for name, target in data.targets.items()}
    assert kinds == {
        "kind": ("class", ("field", "town", "zoo")),
        "level": ("class", ("2", "3", "10")),
        "height": ("scalar", ()),
        "cover": ("multilabel", ("bare", "forest", "water")),
        "grade": ("scalar", ()),
        "tag": ("multilabel", ("x", "y", "z")),
        "note": ("class", ("one",)),
    }
    a, b, c, d = (data[i]["target"] for i in range(4))
    assert (a["kind"].item(), a["level"].item(), a["height"].item()) == (1, 2, 1.5)
    assert a["kind"].dtype == torch.int64
    assert a["cover"].tolist() == [0, 1, 1]
    assert c["cover"].tolist() == [0, 0, 0]
    assert c["kind"].item() == -1
    assert c["height"].isnan()
    assert b["tag"].isnan().all()
    assert d["cover"].isnan().all()
    assert b["grade"].item() == 2


def test_many_whole_numbers_are_a_quantity_and_free_text_no_label(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    ids = [f"{i:02d}" for i in range(30)]
    root = make_folder(tmp_path, {"s1": ids})
    rows = "".join(f"{i},{int(i) * 3},remark {i},NA\n" for i in ids)
    (root / "labels.csv").write_text("id,people,remark,later\n" + rows)
    data = PairedFolder(root)
    assert {name: target.kind for name, target in data.targets.items()} == {"people": "scalar"}
    assert "column 'remark': 30 of 30 cells differ" in caplog.text
    assert "column 'later': no cell says anything" in caplog.text


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name,kind\na,1\n", "no column 'id'"),
        ("", "no column 'id'"),
        ("id,kind\nx,1\ny,2\n", "none of its 2 ids has a picture, for example 'x'"),
        ("id,kind\na,1\na,2\n", "'a' comes twice"),
        ("id,kind\na\n", "line 2 has another number of cells"),
        ("id,kind\na,1,2\n", "line 2 has another number of cells"),
        ("id,kind:colour\na,1\n", "no kind 'colour'"),
        ("id,kind:scalar\na,tall\n", "'tall' is no number"),
        ("id,kind:scalar\na,2\nb,-1e30\n", "-1e30 is larger than any quantity"),
        ("id,cover:class,cover:scalar\na,1,2\n", "two columns are named 'cover'"),
        ("id,mask\na,1\n", "clash"),
    ],
)
def test_wrong_labels(tmp_path, text, match):
    root = make_folder(tmp_path, {"s1": IDS, "mask": ["a"]})
    for mask in (root / "mask").iterdir():
        write(mask, np.zeros((8, 8), np.uint8))
    (root / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=match) as caught:
        PairedFolder(root)
    assert str(root / "labels.csv") in str(caught.value)


def test_unreadable_csv(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS})
    (root / "labels.csv").write_bytes(b"id,kind\na,\xff\xfe\n")
    with pytest.raises(DataError, match=r"labels\.csv: cannot be read as CSV"):
        PairedFolder(root)


def test_masks_keep_their_own_size(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "b", "c"]}, size=8)
    mask = np.kron(np.array([[0, 1], [2, 255]], np.uint8), np.ones((8, 8), np.uint8))
    write(root / "mask" / "a.png", mask)
    write(root / "mask" / "b.png", mask[::2, ::4])
    data = PairedFolder(root)
    assert list(data.modalities) == ["s1"]
    assert data.targets["mask"].classes == ("0", "1", "2")
    for index, expected in enumerate((mask, mask[::2, ::4])):
        target = data[index]["target"]["mask"]
        assert target.dtype == torch.int64
        np.testing.assert_array_equal(target.numpy(), expected)
    assert "mask" not in data[2]["target"]
    batch = Collate(data.modalities, data.targets)([data[1], data[2], data[0]])
    assert (batch["target"]["mask"][1] == 255).all()
    assert batch["sizes"]["mask"].tolist() == [[8, 4], [16, 16], [16, 16]]
    assert (batch["target"]["mask"][0] == 255).sum() == 16 * 16 - 3 * 8
    assert "sizes" not in Collate(data.modalities, data.targets)([data[0], data[2]])
    (root / "mask" / "classes.txt").write_text("dry\nwet\n")
    with pytest.raises(BadSampleError, match=r"has value 2, known are 0 to 1; .*classes\.txt"):
        PairedFolder(root)[0]


def test_splits_and_groups(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS, "s2": IDS})
    (root / "splits.csv").write_text(
        "id,split,cluster,date\na,train,7,x\nb,test,7,x\nc,train,8,x\nzzz,val,9,x\n"
    )
    everything = PairedFolder(root)
    assert everything.groups == ["7", "7", "8", "d"]
    assert "3 groups" in everything.describe()
    train = PairedFolder(root, split="train")
    assert (train.ids, train.groups) == (["a", "c"], ["7", "8"])
    assert len(train.present["s1"]) == 2
    with pytest.raises(DataError, match="no split 'dev'; choose from test, train, val"):
        PairedFolder(root, split="dev")
    with pytest.raises(DataError, match="none of the 1 ids of split 'val' has a picture"):
        PairedFolder(root, split="val")
    (root / "splits.csv").unlink()
    with pytest.raises(DataError, match=r"splits\.csv: no such file"):
        PairedFolder(root, split="train")


def test_every_split_has_the_same_modalities_and_classes(tmp_path):
    root = make_folder(tmp_path, {})
    for index, id_ in enumerate(IDS):
        write(root / "s2" / f"{id_}.npy", np.random.default_rng(index).normal(index, 1, (2, 8, 8)))
    (root / "splits.csv").write_text("id,split\na,train\nb,train\nc,test\nd,test\n")
    (root / "labels.csv").write_text("id,kind\na,u\nb,v\nc,w\nd,w\n")
    train, test = (PairedFolder(root, split=split) for split in ("train", "test"))
    assert train.modalities == test.modalities
    assert train.targets == test.targets


def test_missing_root(tmp_path):
    with pytest.raises(DataError, match="no such folder; expected ROOT/<modality>/<id>"):
        PairedFolder(tmp_path / "nowhere")


def test_root_without_pictures(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "readme.txt").write_text("hello")
    with pytest.raises(DataError, match="no sub-folder with pictures; expected"):
        PairedFolder(tmp_path)


@pytest.mark.parametrize("given", [None, {"s1": {"bands": ["x"], "scaling": "range"}}])
def test_empty_modality_folder(tmp_path, given):
    make_folder(tmp_path, {"s2": IDS})
    (tmp_path / "s1").mkdir()
    with pytest.raises(DataError, match="s1: holds no pictures; fill it or remove it"):
        PairedFolder(tmp_path, given)


def test_no_partners_at_all(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a_s1", "b_s1"], "s2": ["a_s2", "b_s2"]})
    with pytest.raises(DataError, match=r"no id has two modalities .*s1/a_s1, s2/a_s2"):
        PairedFolder(root)


def test_two_files_for_one_id(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "a.jpg"], "s2": ["a"]})
    with pytest.raises(DataError, match=r"two files for id 'a', a\.jpg and a\.png"):
        PairedFolder(root)


def test_bands_that_contradict_the_files(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS})
    with pytest.raises(DataError, match=r"'s1' is given 2 bands \(VV, VH\), its files have 1"):
        PairedFolder(root, {"s1": "sentinel1"})
    with pytest.raises(DataError, match=r"is given 1 bands \(B12\), its files have 1"):
        PairedFolder(root, {"s1": {"bands": {"swir": "B12"}, "scaling": "image"}})


def test_one_bad_file_spoils_only_its_sample(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS, "s2": IDS})
    (root / "s1" / "b.png").write_bytes(b"")
    write(root / "s2" / "c.png", np.zeros((3, 8, 8), np.uint8))
    data = PairedFolder(root)
    with pytest.raises(BadSampleError, match=r"b\.png: is empty"):
        data[1]
    with pytest.raises(BadSampleError, match=r"c\.png: has 3 bands, its modality 1"):
        data[2]
    loader = DataLoader(
        SkipBad(data), 4, collate_fn=Collate(data.modalities, data.targets), num_workers=1
    )
    batch = next(iter(loader))
    assert batch["present"]["s1"].tolist() == [True, False, False, True]
    assert [file.rsplit("/", 1)[1] for file, _ in batch["bad"]] == ["b.png", "c.png"]
    for file in (root / "s1").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="'s1': none of its files can be read"):
        PairedFolder(root)


def test_hidden_and_foreign_files_are_left_alone(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS, "s2": IDS})
    (root / "s1" / "._a.png").write_bytes(b"junk")
    (root / "s1" / "a.xml").write_text("<a/>")
    (root / ".cache").mkdir()
    (root / "run").mkdir()  # of a run that begins
    (root / "run" / ".lock").write_bytes(b"")
    shutil.copy(root / "s1" / "a.png", root / "stray.png")
    data = PairedFolder(root)
    assert data.ids == IDS
    assert isinstance(data.modalities["s1"], Modality)


def test_masks_of_0_and_255_have_no_foreground(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a", "b", "c"]}, size=8)
    half = np.kron(np.array([[0, 255]], np.uint8), np.ones((8, 4), np.uint8))
    write(root / "mask" / "a.png", np.full((8, 8), 255, np.uint8))  # nothing is known of it
    assert PairedFolder(root).targets["mask"].classes == ("0",)
    write(root / "mask" / "b.png", half)
    refused = r"a\.png: the masks hold only 0 and 255; .* write the foreground as 1"
    with pytest.raises(DataError, match=refused):
        PairedFolder(root)
    (root / "mask" / "classes.txt").write_text("dry\nwet\n")
    with pytest.raises(DataError, match=refused):
        PairedFolder(root)
    write(root / "mask" / "c.png", np.minimum(half, 1))
    assert PairedFolder(root).targets["mask"].classes == ("dry", "wet")
    (root / "mask" / "classes.txt").unlink()
    assert PairedFolder(root).targets["mask"].classes == ("0", "1")


def test_a_rare_class_is_looked_for_in_all_masks(tmp_path, monkeypatch):
    monkeypatch.setattr("decur.data.masks._LOOKED_AT", 2)
    root = make_folder(tmp_path, {"s1": ["a", "b", "c"]}, size=8)
    for id_, value in {"a": 0, "b": 1, "c": 0}.items():
        write(root / "mask" / f"{id_}.png", np.array([[value, 255]], np.uint8))
    assert PairedFolder(root).targets["mask"].classes == ("0", "1")


def test_names_of_classes_in_utf8_only(tmp_path):
    root = make_folder(tmp_path, {"s1": IDS})
    write(root / "mask" / "a.png", np.eye(8, dtype=np.uint8))
    (root / "mask" / "classes.txt").write_text("Gebäude\nWald\n", encoding="utf-8-sig")
    assert PairedFolder(root).targets["mask"].classes == ("Gebäude", "Wald")
    (root / "mask" / "classes.txt").write_text("Gebäude\nWald\n", encoding="latin-1")
    with pytest.raises(DataError, match=r"classes\.txt: cannot be read as text .*UTF-8"):
        PairedFolder(root)


def test_ids_pair_in_either_form_of_unicode(tmp_path):
    mac, linux = (unicodedata.normalize(form, "Orléans") for form in ("NFD", "NFC"))
    root = make_folder(tmp_path, {"s1": [mac], "s2": [linux]})
    (root / "labels.csv").write_text(f"id,kind\n{mac},town\n")
    data = PairedFolder(root)
    assert data.ids == [linux] and set(data[0]["images"]) == {"s1", "s2"}
    assert data[0]["target"]["kind"] == 0
    make_folder(root, {"s1": [linux]})
    with pytest.raises(DataError, match="two files for id"):
        PairedFolder(root)


def test_a_name_that_is_no_utf8_is_refused(tmp_path):
    root = make_folder(tmp_path, {"s1": ["a"]})
    shutil.copy(root / "s1" / "a.png", os.fsencode(root / "s1") + b"/\xe9.png")
    with pytest.raises(DataError, match=r"the name '\\udce9\.png' is no UTF-8; rename"):
        PairedFolder(root)


def test_tables_of_common_programs(tmp_path, caplog):
    root = make_folder(tmp_path, {"s1": ["01", "02", "03"]})
    (root / "labels.csv").write_text(
        "Unnamed: 0,id,height,kind,tags,\n"
        "0,01,nan,NA,null,\n"
        "1,02,2.5,u,x;y,\n"
        ",,,,,\n"
        "\n"
        "2,3,1.5,v,,\n"
    )
    data = PairedFolder(root)
    assert {n: (t.kind, t.classes) for n, t in data.targets.items()} == {
        "height": ("scalar", ()),
        "kind": ("class", ("u", "v")),
        "tags": ("multilabel", ("x", "y")),
    }
    first = data[0]["target"]
    assert first["height"].isnan() and first["kind"] == -1 and first["tags"].isnan().all()
    assert "1 of 3 ids of" in caplog.text and "for example '3'" in caplog.text
    assert "the picture is '03': spreadsheets strip leading zeros" in caplog.text
    (root / "labels.csv").write_text("id,kind\n1,u\n2,v\n")
    with pytest.raises(DataError, match=r"none of its 2 ids .* '01': spreadsheets strip"):
        PairedFolder(root)
    (root / "labels.csv").unlink()
    caplog.clear()
    (root / "splits.csv").write_text("id,split\n01,train\nx,train\n")
    assert PairedFolder(root, split="train").ids == ["01"]
    assert "1 of 2 ids of" in caplog.text and "for example 'x'" in caplog.text


def test_a_file_of_another_depth_is_a_bad_sample(tmp_path):
    for row in range(5):
        for name, kind in (("rgb", np.uint8), ("ir", np.uint16 if row == 2 else np.uint8)):
            (tmp_path / name).mkdir(exist_ok=True)
            write(tmp_path / name / f"{row}.png", np.full((1, 4, 4), 200, kind))
    data = PairedFolder(tmp_path)
    assert data.modalities["ir"].scaling == "range"
    with pytest.raises(BadSampleError, match="has 16-bit pixels, others of its sensor 8-bit"):
        data[2]
    assert data[1]["images"]["ir"].dtype == torch.uint8


def test_bands_of_files_are_picked_and_converted(tmp_path):
    pixels = np.arange(3 * 16).reshape(3, 4, 4).astype(np.uint16)
    for name in ("s1", "s2"):
        (tmp_path / name).mkdir()
        write_raster(tmp_path / name / "a.tif", pixels, names=("B02", "B03", "B04"))
    fields = {"scaling": "range", "scale": 0.5, "offset": 1}
    data = PairedFolder(
        tmp_path,
        {"s1": {"bands": ["B4", "B2"], **fields}, "s2": {"bands": {"red": 3}, **fields}},
    )
    images = data[0]["images"]
    np.testing.assert_array_equal(images["s1"], pixels[[2, 0]] / 2 + 1)
    np.testing.assert_array_equal(images["s2"], pixels[[2]] / 2 + 1)
    found = compute_stats(tmp_path, data.modalities)
    np.testing.assert_allclose(found["s2"].mean, pixels[2].mean() / 2 + 1)
    with pytest.raises(DataError, match=r"its files have 3 \(B02, B03, B04\); correct `bands`"):
        PairedFolder(tmp_path, {"s1": {"bands": ["B4", "B12"], **fields}, "s2": "rgb"})


def test_arrays_are_read_by_the_bands_and_the_name_of_their_modality(tmp_path):
    cube = np.random.default_rng(0).normal(size=(6, 6, 9)).astype(np.float32)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "x.npz", cube=cube, truth=cube[..., 0])
    fields = {"bands": [f"c{band}" for band in range(9)], "scaling": "image", "variable": "cube"}
    images = PairedFolder(tmp_path, {"a": fields, "b": fields})[0]["images"]
    np.testing.assert_array_equal(images["a"], np.moveaxis(cube, -1, 0))


def test_a_sensor_that_is_turned_against_another_is_told_of(tmp_path, caplog):
    for name, turn in (("rgb", 6), ("ir", 1)):
        (tmp_path / name).mkdir()
        exif = Image.Exif()
        exif[274] = turn
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(tmp_path / name / "a.png", exif=exif)
    PairedFolder(tmp_path)
    assert "'ir' are 24 x 32 and those of 'rgb' 32 x 24: one is turned" in caplog.text
