import json
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from make_bigearthnet_mm import make_bigearthnet_mm
from make_ssl4eo_s12 import BANDS, DAYS, make_ssl4eo_s12, product_name
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import SSL4EOS12, Collate
from decur.data.files import read_image
from decur.data.ssl4eo import season_order
from decur.errors import BadSampleError, ConfigError, DataError

S1, S2 = {"s1": "s1"}, {"s2": "s2c"}
PLACES = (0, 1, 5)  # numbers have gaps


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ssl4eo")
    return make_ssl4eo_s12(folder, {"s1": PLACES, "s2c": PLACES, "s2a": PLACES[:1]})


def seasons(data, name):
    """Which season each sample shows: the maker writes it into the first pixel of a fine band."""
    band = data.modalities[name].bands.index("VV" if name == "s1" else "B2")
    return [int(data[i]["images"][name][band, 0, 0]) for i in range(len(data))]


def test_bands_are_those_of_one_product(root):
    data = SSL4EOS12(root)
    assert data.ids == [f"{place:07d}_{k}" for place in PLACES for k in range(4)]
    assert data.groups == [f"{place:07d}" for place in PLACES for _ in range(4)]
    images = data[6]["images"]
    assert {name: tuple(image.shape) for name, image in images.items()} == {
        "s1": (2, 264, 264),
        "s2": (13, 264, 264),
    }
    for name, index in (("s1", 1), ("s2", 7)):  # VH, B8: not resized
        band = data.modalities[name].bands[index]
        day = DAYS[seasons(data, name)[6]]
        product = data.sensors[name]
        file = root / product / "0000001" / product_name(product, day) / f"{band}.tif"
        assert torch.equal(images[name][index], read_image(file)[0])
    assert tuple(BANDS["s2c"]) == data.modalities["s2"].bands


def test_each_season_once_in_an_order_of_its_own_for_each_sensor(root):
    data = SSL4EOS12(root)
    orders = {name: np.reshape(seasons(data, name), (3, 4)) for name in ("s1", "s2")}
    for order in orders.values():
        assert (np.sort(order, axis=1) == np.arange(4)).all()
    assert (orders["s1"] != orders["s2"]).any()
    assert seasons(SSL4EOS12(root), "s1") == orders["s1"].ravel().tolist()  # the same again
    alone = SSL4EOS12(root, S1)  # and whatever else is read
    assert seasons(alone, "s1") == orders["s1"].ravel().tolist()
    others = [seasons(SSL4EOS12(root, S1, seed=seed), "s1") for seed in range(1, 4)]
    assert any(other != orders["s1"].ravel().tolist() for other in others)


def test_one_season_a_place(root):
    data = SSL4EOS12(root, seasons="one")
    assert data.ids == [f"{place:07d}_0" for place in PLACES]
    every = SSL4EOS12(root)
    assert seasons(data, "s1") == seasons(every, "s1")[::4]


def test_seasons_are_drawn_evenly():
    """Of many places, each of the 16 pairs of seasons about as often."""
    pairs = Counter(
        tuple(season_order(0, name, place=f"{place:07d}", products=4)[0] for name in ("s1", "s2c"))
        for place in range(1600)
    )
    assert len(pairs) == 16
    assert max(abs(count - 100) for count in pairs.values()) < 45  # 4.6 standard deviations


def test_level_2a_and_places_that_lack_a_sensor(root):
    data = SSL4EOS12(root, {"l2a": "s2a", "s1": "s1"})
    assert list(data.modalities) == ["l2a", "s1"]
    assert data.present["l2a"].tolist() == [True] * 4 + [False] * 8
    assert data[0]["images"]["l2a"].shape == (12, 264, 264)
    assert data[4]["images"].keys() == {"s1"}
    assert "B10" not in data.modalities["l2a"].bands


def test_fewer_products_than_seasons_are_used_again(tmp_path):
    data = SSL4EOS12(make_ssl4eo_s12(tmp_path, {"s1": [3]}, DAYS[:3]), S1)
    assert Counter(seasons(data, "s1")).keys() == {0, 1, 2}
    assert len(data) == 4


def test_offset_by_the_date_of_a_product(tmp_path, caplog):
    make_ssl4eo_s12(tmp_path, {"s2c": [0]}, ["20220601"])
    corrected = SSL4EOS12(tmp_path, S2)
    assert "set offset to 0" in caplog.text  # these pixels were never shifted
    assert corrected[0]["images"]["s2"].median() == 0
    plain = SSL4EOS12(tmp_path, S2, offset=0)[0]["images"]["s2"]
    assert 700 < plain.median() < 900
    make_ssl4eo_s12(tmp_path / "old", {"s2c": [0]}, ["20211231"])
    old = SSL4EOS12(tmp_path / "old", S2)[0]["images"]["s2"]
    assert torch.equal(old, plain)


def test_bad_files_are_named(tmp_path):
    make_ssl4eo_s12(tmp_path, {"s1": [0, 1]}, DAYS[:1])
    data = SSL4EOS12(tmp_path, S1)
    product = tmp_path / "s1" / "0000000" / product_name("s1", DAYS[0])
    (product / "VH.tif").unlink()
    with pytest.raises(BadSampleError, match=r"VH\.tif: no such file"):
        data[0]
    (product / "VV.tif").unlink()
    (product / "metadata.json").unlink()
    product.rmdir()
    with pytest.raises(BadSampleError, match=r"0000000: holds no product"):
        data[0]
    product.parent.rmdir()
    with pytest.raises(BadSampleError, match=r"0000000: cannot be listed"):
        data[0]
    assert data[4]["images"]["s1"].shape == (2, 264, 264)


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"s1: no such folder; expected ROOT/.*SSL4EO-S12"):
        SSL4EOS12(tmp_path)
    (tmp_path / "s1" / "ssl4eo-s12").mkdir(parents=True)
    with pytest.raises(DataError, match=r"s1: no place in what is there \(ssl4eo-s12\); expected"):
        SSL4EOS12(tmp_path)
    (tmp_path / "s1" / "0000000").mkdir()
    (tmp_path / "s2c" / "0000001").mkdir(parents=True)
    with pytest.raises(DataError, match=r"s1 and s2c have no place in common \(s1/0000000, s2c/"):
        SSL4EOS12(tmp_path)
    for wrong, said in (
        ({"sensors": {"s1": "s1", "s2": "s2"}}, r"sensors has 's2'; choose from s1, s2c, s2a"),
        ({"sensors": {}}, "sensors is empty"),
        ({"seasons": "some"}, r"seasons has 'some'; choose from all, one"),
        ({"offset": 1}, r"offset has 1; choose from auto, 0, 1000"),
        ({"modalities": {"s2a": {}}}, r"no 's2a'; choose from s1, s2"),
    ):
        with pytest.raises(ConfigError, match=said):
            SSL4EOS12(root, **wrong)


def test_in_worker_processes(root):
    data = pickle.loads(pickle.dumps(SSL4EOS12(root, S1)))
    loader = DataLoader(
        data,
        batch_size=4,
        collate_fn=Collate(data.modalities, data.targets),
        num_workers=1,
        multiprocessing_context="forkserver",
    )
    batches = list(loader)
    assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
    assert torch.equal(batches[1]["images"]["s1"][2], data[6]["images"]["s1"])


def test_pretrain_and_transfer_to_bigearthnet(root, tmp_path):
    main(
        [
            *("pretrain", "--data=SSL4EOS12", f"--data.root={root}", f"--run={tmp_path / 'pre'}"),
            *("--data.sensors={s1: s1, s2: s2c}", "--data.offset=0", "--projector.width=16"),
            *("--encoder.name=test_resnet", "--loader.workers=0", "--loader.batch_size=6"),
            *("--views.size=32", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    run = tmp_path / "pre"
    encoders = sorted(file.stem for file in (run / "encoders").iterdir())
    assert encoders == ["s1", "s2"]
    labels = [["Pastures"], ["Sea and ocean"]] * 4
    labelled = make_bigearthnet_mm(
        tmp_path / "ben", labels, {"train": range(4), "test": range(4, 8)}
    )
    main(
        [
            *("transfer", "--data=BigEarthNetMM", f"--data.root={labelled}", f"--encoders={run}"),
            *("--data.modalities={s1: sentinel1, s2: sentinel2-l1c}", "--missing_bands=empty"),
            *("--train_split=train", "--test_split=test", "--size=32", "--bootstrap=0"),
            *("--loader.workers=0", "--device=cpu", f"--run={tmp_path / 'transfer'}"),
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"]) == (4, 4)
    assert results["modalities"] == ["s1", "s2"]
