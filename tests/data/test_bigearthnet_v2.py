import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from make_bigearthnet_v2 import make_bigearthnet_v2, reference_map, s1_name, s2_name
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import BigEarthNetMM, BigEarthNetV2, Collate, SkipBad
from decur.data.bigearthnet import CLASSES_19, CLASSES_43
from decur.data.bigearthnet_v2 import CODES_43
from decur.data.files import read_image
from decur.errors import BadSampleError, ConfigError, DataError

LABELS = [
    ["Urban fabric", "Marine waters"],
    ["Pastures"],
    ["Inland wetlands", "Marine waters"],
    ["Beaches, dunes, sands"],
]
SPLITS = ["train", "train", "validation", "test"]
TILE = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


@pytest.fixture
def root(tmp_path):
    return make_bigearthnet_v2(tmp_path / "ben", LABELS, SPLITS)


def shown(data, index):
    target = data[index]["target"]["cover"]
    return {
        name for name, value in zip(data.targets["cover"].classes, target, strict=True) if value
    }


def test_pairs_bands_and_labels(root):
    data = BigEarthNetV2(root, split="train")
    assert data.ids == [s2_name(0), s2_name(1)]
    assert data.groups == ["S2A_MSIL2A_20170613T101031"] * 2
    images = data[1]["images"]
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "s1": (2, 120, 120),
        "s2": (12, 120, 120),
    }
    s1 = root / "BigEarthNet-S1" / "S1A_IW_GRDH_1SDV_20170613T165043" / s1_name(1)
    s2 = root / "BigEarthNet-S2" / TILE / s2_name(1)
    bands = data.modalities["s2"].bands
    assert torch.equal(images["s1"][1], read_image(s1 / f"{s1.name}_VH.tif")[0])
    for band, file in (("B2", "B02"), ("B8", "B08"), ("B4", "B04")):  # not resized
        assert torch.equal(
            images["s2"][bands.index(band)], read_image(s2 / f"{s2.name}_{file}.tif")[0]
        )
    assert data.modalities["s1"].bands == ("VV", "VH") and "B10" not in bands
    assert shown(data, 0) == set(LABELS[0]) and shown(data, 1) == set(LABELS[1])
    assert set(data[0]["target"]) == {"cover"}


def test_statistics_are_those_of_the_authors(root):
    """As they print them, by the names of files: see ConfigILM, 120_bilinear."""
    means = {"B01": 360.64678955078125, "B8A": 2235.48681640625, "B12": 997.715087890625}
    modality = BigEarthNetV2(root).modalities["s2"]
    for band, mean in means.items():
        row = modality.bands.index(band.replace("B0", "B"))
        assert modality.mean[row] == pytest.approx(mean, abs=1e-3)


def test_splits_and_all_of_them(root):
    assert [BigEarthNetV2(root, split).ids for split in ("train", "val", "test")] == [
        [s2_name(0), s2_name(1)],
        [s2_name(2)],
        [s2_name(3)],
    ]
    data = BigEarthNetV2(root)
    assert [shown(data, i) for i in range(4)] == [set(names) for names in LABELS]
    assert len(set(data.groups)) == 2  # the maker's fourth is of the next day
    with pytest.raises(ConfigError, match="split is 'validation'; choose from train, val, test"):
        BigEarthNetV2(root, "validation")


def test_labels_follow_their_patches_whatever_the_order_of_rows(root):
    table = pq.read_table(root / "metadata.parquet")
    pq.write_table(table.take([3, 1, 0, 2]), root / "metadata.parquet", row_group_size=1)
    data = BigEarthNetV2(root)
    assert [shown(data, i) for i in range(4)] == [set(names) for names in LABELS]
    sample = BigEarthNetV2(root, classes=None)[0]
    assert "target" not in sample and sample["images"].keys() == {"s1", "s2"}


def test_maps_become_the_19_classes(root):
    data = BigEarthNetV2(root, maps=True)
    sea, town = CLASSES_19.index("Marine waters"), CLASSES_19.index("Urban fabric")
    wet = CLASSES_19.index("Inland wetlands")
    for index, lower in enumerate((town, town, wet, 255)):  # 332, bare rock, is in none
        mask = data[index]["target"]["map"]
        assert mask.dtype == torch.int64
        assert (mask[60:] == lower).all()
        assert (mask[10:60] == sea).all() and (mask[:10, 10:] == sea).all()
        assert (mask[:10, :10] == 255).all()
    assert (reference_map(0)[60:] == 111).all()
    only = BigEarthNetV2(root, classes=None, maps=True)
    assert set(only[0]["target"]) == {"map"}
    file = root / "Reference_Maps" / TILE / s2_name(1) / f"{s2_name(1)}_reference_map.tif"
    file.unlink()
    with pytest.raises(BadSampleError, match=r"_reference_map\.tif: no such file"):
        data[1]
    with pytest.raises(DataError, match=r"Maps: no such folder; unpack Reference_Maps\.tar"):
        BigEarthNetV2(root, maps=True, maps_folder="Maps")


def test_codes_of_corine():
    """Of classes whose place in the nomenclature is well known, and the number of each level."""
    codes = dict(zip(CLASSES_43, CODES_43, strict=True))
    for name, code in {
        "Airports": 124,
        "Sport and leisure facilities": 142,
        "Rice fields": 213,
        "Pastures": 231,
        "Agro-forestry areas": 244,
        "Mixed forest": 313,
        "Transitional woodland/shrub": 324,
        "Burnt areas": 334,
        "Peatbogs": 412,
        "Intertidal flats": 423,
        "Water bodies": 512,
        "Sea and ocean": 523,
    }.items():
        assert codes[name] == code
    levels = [code // 100 for code in CODES_43]
    assert [levels.count(level) for level in range(1, 6)] == [11, 11, 11, 5, 5]


def test_patches_that_are_not_there(root, caplog):
    folder = root / "BigEarthNet-S1" / "S1A_IW_GRDH_1SDV_20170613T165043" / s1_name(0)
    folder.rename(root / "gone")
    data = BigEarthNetV2(root, "train")
    assert data.present["s1"].tolist() == [False, True]
    assert data[0]["images"].keys() == {"s2"}
    (root / "BigEarthNet-S2" / TILE / s2_name(0)).rename(root / "gone too")
    data = BigEarthNetV2(root, "train")
    assert data.ids == [s2_name(1)] and shown(data, 0) == {"Pastures"}
    assert "1 of 2 pairs have no files" in caplog.text
    (root / "BigEarthNet-S2" / TILE / s2_name(1) / f"{s2_name(1)}_B05.tif").unlink()
    with pytest.raises(BadSampleError, match=r"_B05\.tif: no such file"):
        data[0]


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"metadata\.parquet: no such file; expected ROOT/Big"):
        BigEarthNetV2(tmp_path)
    for wrong in ({"split": "Train"}, {"classes": 43}, {"offset": 5}):
        with pytest.raises(ConfigError, match=rf"{next(iter(wrong))} is .*choose from"):
            BigEarthNetV2(root, **wrong)
    with pytest.raises(DataError, match="elsewhere: no such folder; expected"):
        BigEarthNetV2(root, s1_folder="elsewhere")
    with pytest.raises(DataError, match="holds no folder of a patch in a folder of a tile"):
        BigEarthNetV2(root, s1_folder=f"BigEarthNet-S2/{TILE}")
    file = root / "metadata.parquet"
    table = pq.read_table(file)
    pq.write_table(table.filter(pa.array([False, False, False, True])), file)
    with pytest.raises(DataError, match="none of the 0 pairs of split 'train' has a folder"):
        BigEarthNetV2(root, "train")
    pq.write_table(table.drop_columns(["split"]), file)
    with pytest.raises(DataError, match=r"metadata\.parquet: has no column split \(it has patch"):
        BigEarthNetV2(root)
    pq.write_table(pa.concat_tables([table, table]), file)
    with pytest.raises(DataError, match="names a patch twice"):
        BigEarthNetV2(root)
    lawn = table.set_column(1, "labels", pa.array([["Pastures"], ["Lawn"], [], []]))
    pq.write_table(lawn, file)
    with pytest.raises(DataError, match=f"patch {s2_name(1)} has label 'Lawn', which is none of"):
        BigEarthNetV2(root)
    assert len(BigEarthNetV2(root, classes=None)) == 4
    file.write_bytes(b"PAR1 and no more")
    with pytest.raises(DataError, match=r"metadata\.parquet: cannot be read .*download") as raised:
        BigEarthNetV2(root)
    assert "\n" not in str(raised.value)


def test_offset_by_name_or_by_hand(tmp_path, caplog):
    make_bigearthnet_v2(tmp_path / "a", [["Pastures"]], ["train"], brightness=3000)
    plain = BigEarthNetV2(tmp_path / "a")[0]["images"]["s2"]  # 9999 tells nothing, 2017 is before
    assert plain.median() > 2800 and "set offset to 1000" in caplog.text
    caplog.clear()
    assert torch.equal(BigEarthNetV2(tmp_path / "a", offset=1000)[0]["images"]["s2"], plain - 1000)
    assert not caplog.records
    make_bigearthnet_v2(tmp_path / "b", [["Pastures"]], ["train"], 3000, baseline="N0500")
    assert torch.equal(BigEarthNetV2(tmp_path / "b")[0]["images"]["s2"], plain - 1000)
    assert torch.equal(BigEarthNetV2(tmp_path / "b", offset=0)[0]["images"]["s2"], plain)


def test_in_worker_processes(root):
    data = pickle.loads(pickle.dumps(BigEarthNetV2(root, maps=True)))
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
    assert batches[0]["target"]["map"].shape == (2, 120, 120)
    assert torch.equal(batches[1]["images"]["s2"][0], data[2]["images"]["s2"])


def test_options_are_those_of_the_first_release_and_more():
    v1, v2 = (cls.__init__.__annotations__ for cls in (BigEarthNetMM, BigEarthNetV2))
    assert set(v2) - set(v1) == {"maps", "maps_folder"} and set(v1) <= set(v2)


@pytest.mark.slow  # as with the first release
def test_pretrain_and_transfer(tmp_path):
    kinds = [["Pastures"], ["Marine waters"], ["Pastures", "Marine waters"]]
    splits = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    root = make_bigearthnet_v2(tmp_path / "ben", kinds * 4, splits)
    data = [f"--data={BigEarthNetV2.__name__}", f"--data.root={root}"]
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
    assert np.isfinite([v for v in results["metrics"].values() if isinstance(v, float)]).all()
