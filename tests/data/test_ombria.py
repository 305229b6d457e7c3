import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from make_folder import write
from make_ombria import make_ombria
from PIL import Image
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import Collate, Ombria, PairedFolder
from decur.errors import BadSampleError, ConfigError, DataError

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "ombria"


@pytest.fixture
def root(tmp_path):
    places = {"train": range(1, 7), "test": (13, 18)}
    return make_ombria(tmp_path / "OMBRIA", places, {"ALBANIA": (1, 10), "GUYANA": (2,)})


def pixels(file):
    return np.asarray(Image.open(file))


def test_every_place_before_and_after(root):
    data = Ombria(root)
    assert len(data) == 16
    assert data.ids[:2] == ["0001_before", "0001_after"]
    assert data.groups[:3] == ["0001", "0001", "0002"]
    assert Ombria(root, "test").ids == ["0013_before", "0013_after", "0018_before", "0018_after"]
    assert {name: (m.channels, m.size) for name, m in data.modalities.items()} == {
        "s1": (1, (256, 256)),
        "s2": (3, (256, 256)),
    }
    for index, date in ((2, "before"), (3, "after")):
        sample = data[index]
        for number, name in ((1, "s1"), (2, "s2")):
            file = root / f"OmbriaS{number}/train/{date.upper()}/S{number}_{date}_0002.png"
            image = sample["images"][name]
            assert image.dtype == torch.uint8
            np.testing.assert_array_equal(image.permute(1, 2, 0).squeeze(-1), pixels(file))


def test_the_flood_is_known_of_the_picture_after_it(root):
    data = Ombria(root, "train")
    assert data[0]["target"] == {}
    flood = data[1]["target"]["flood"]
    gray = pixels(root / "OmbriaS1/train/MASK/S1_mask_0001.png")
    np.testing.assert_array_equal(flood, gray == 255)
    assert flood.dtype == torch.int64
    write(root / "OmbriaS1/train/MASK/S1_mask_0001.png", (gray // 255).astype(np.uint8))
    assert torch.equal(data[1]["target"]["flood"], flood)  # 0 and 1 are as good
    batch = Collate(data.modalities, data.targets)([data[0], data[1]])
    assert (batch["target"]["flood"][0] == 255).all()
    (root / "OmbriaS1/train/MASK/S1_mask_0001.png").unlink()
    assert torch.equal(Ombria(root, "train")[1]["target"]["flood"], flood)  # Sentinel-2's


def test_half_size(root):
    whole, half = Ombria(root)[1], Ombria(root, size=128)[1]
    assert half["images"]["s2"].shape == (3, 128, 128)
    expected = interpolate(
        whole["images"]["s2"][None].float(), (128, 128), mode="bilinear", antialias=True
    )
    torch.testing.assert_close(half["images"]["s2"], expected[0].round().to(torch.uint8))
    np.testing.assert_array_equal(
        half["target"]["flood"], whole["target"]["flood"][::2, ::2]
    )  # blocks of 32 pixels


def test_floods_of_2021(root):
    data = Ombria(root, "2021")
    assert data.ids[:2] == ["ALBANIA_1_before", "ALBANIA_1_after"]
    assert set(data.groups) == {"ALBANIA", "GUYANA"}
    assert len(data) == 6
    file = root / "2021/GUYANA/Sentinel2/AFTER/imafter_2.png"
    image = data[data.ids.index("GUYANA_2_after")]["images"]["s2"]
    np.testing.assert_array_equal(image.permute(1, 2, 0), pixels(file))


def test_missing_partners(root):
    (root / "OmbriaS1/train/BEFORE/S1_before_0001.png").unlink()
    (root / "OmbriaS2/train/AFTER/S2_after_0002.png").unlink()
    data = Ombria(root, "train")
    assert data.present["s1"].tolist()[:4] == [False, True, True, True]
    assert data.present["s2"].tolist()[:4] == [True, True, True, False]
    assert data[0]["images"].keys() == {"s2"}
    assert data[3]["images"].keys() == {"s1"}


def test_bad_files_are_named(root):
    data = Ombria(root, "train")
    file = root / "OmbriaS2/train/AFTER/S2_after_0001.png"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(BadSampleError, match=r"S2_after_0001\.png"):
        data[1]
    write(root / "OmbriaS1/train/BEFORE/S1_before_0001.png", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(BadSampleError, match=r"S1_before_0001\.png: has 3 bands, its modality 1"):
        data[0]


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"no such folder; expected ROOT/OmbriaS1.*git clone"):
        Ombria(tmp_path / "none")
    with pytest.raises(DataError, match=r"BEFORE: no such folder; expected ROOT/OmbriaS1"):
        Ombria(tmp_path)  # one folder too high
    for wrong, said in (
        ({"split": "val"}, r"split is 'val'; choose from train, test, 2021"),
        ({"size": 64}, r"size is 64; choose from 128, 256"),
    ):
        with pytest.raises(ConfigError, match=said):
            Ombria(root, **wrong)
    (root / "2021").rename(root / "2020")
    with pytest.raises(DataError, match=r"2021: holds no event; expected"):
        Ombria(root, "2021")
    mixed = root / "OmbriaS2/test/BEFORE"
    (mixed / "S2_before_0018.png").rename(mixed / "S1_before_0018.png")
    with pytest.raises(DataError, match=r"S1_before_0018\.png: a picture of Sentinel-1 in Ombria"):
        Ombria(root)
    (mixed / "S1_before_0018.png").rename(mixed / "S2_before_0001.png")
    with pytest.raises(DataError, match=r"0001\.png: place 0001 is in train too; keep one"):
        Ombria(root)
    (mixed / "S2_before_0001.png").rename(mixed / "s2_before_0013.png")
    with pytest.raises(DataError, match="are of the same place and date; keep one"):
        Ombria(root)
    for file in (root / "OmbriaS1/test").glob("*/*"):
        file.rename(file.with_name(f"copy of {file.name}"))
    with pytest.raises(DataError, match=r"no picture in what is there \(copy of S1_after_0013"):
        Ombria(root, "test")


def test_in_worker_processes(root):
    data = Ombria(root, "test", size=128)
    loader = DataLoader(
        data,
        batch_size=2,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    batches = list(loader)
    assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
    assert torch.equal(batches[0]["images"]["s1"][1], data[1]["images"]["s1"])
    assert pickle.loads(pickle.dumps(data)).ids == data.ids


@pytest.mark.realdata
@pytest.mark.skipif(not REAL.is_dir(), reason=f"no real data at {REAL}")
def test_real_pictures_in_the_original_layout(tmp_path):
    folder = PairedFolder(REAL)
    rows = [i for i, id_ in enumerate(folder.ids) if id_[:4] in ("0001", "0157", "0694")]
    for row in rows:
        number, date = folder.ids[row].split("_")
        for sensor in (1, 2):
            target = (
                tmp_path / f"OmbriaS{sensor}/train/{date.upper()}/S{sensor}_{date}_{number}.png"
            )
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(REAL / f"s{sensor}" / f"{folder.ids[row]}.png")
            if date == "after":
                mask = tmp_path / f"OmbriaS{sensor}/train/MASK/S{sensor}_mask_{number}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                mask.symlink_to(REAL / "mask" / f"{folder.ids[row]}.png")
    data = Ombria(tmp_path, "train", size=128)
    assert sorted(data.ids) == sorted(folder.ids[row] for row in rows)
    for row in rows:
        ours, theirs = data[data.ids.index(folder.ids[row])], folder[row]
        for name, image in theirs["images"].items():
            assert torch.equal(ours["images"][name], image)
        if "mask" in theirs["target"]:
            assert torch.equal(ours["target"]["flood"], theirs["target"]["mask"])
        else:
            assert ours["target"] == {}


@pytest.mark.slow  # the same way as with BigEarthNet
def test_pretrain_and_transfer(root, tmp_path):
    data = [f"--data={Ombria.__name__}", f"--data.root={root}", "--data.size=128"]
    encoder = ["--encoder.name=test_resnet", "--loader.workers=0"]
    main(
        [
            *("pretrain", *data, *encoder, "--data.split=train", f"--run={tmp_path / 'pre'}"),
            *("--projector.width=16", "--loader.batch_size=4", "--views.size=32"),
            *("--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    main(
        [
            *("transfer", *data, *encoder, "--train_split=train", "--test_split=test"),
            *(f"--encoders={tmp_path / 'pre'}", "--bootstrap=0", "--device=cpu", "--size=32"),
            *("--fit.epochs=1", "--loader.batch_size=4", f"--run={tmp_path / 'transfer'}"),
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"], results["kind"]) == (6, 2, "mask")
    assert (results["modalities"], results["groups"]) == (["s1", "s2"], 2)
