import builtins
import dataclasses
import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from make_bigearthnet_v2 import make_bigearthnet_v2
from make_ssl4eo_s12_v11 import (
    BANDS,
    file_name,
    make_file,
    make_ssl4eo_s12_v11,
    mark,
    pixels,
    write_zarr_zip,
)
from torch.utils.data import DataLoader

from decur.cli import main
from decur.data import Collate, SkipBad, SSL4EOS12v11, ssl4eo_v11
from decur.data.ssl4eo import season_order
from decur.errors import BadSampleError, ConfigError, DataError

S1 = {"s1": "s1"}
FILES = ((80717, 60573, 5), (12333, 7))  # the places of a file are in no order
PLACES = [place for file in FILES for place in file]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_ssl4eo_s12_v11(tmp_path_factory.mktemp("ssl4eo"), FILES, ("s1", "s2c", "s2a"))


@pytest.fixture
def copied(root, tmp_path):
    shutil.copytree(root / "train", tmp_path / "train")
    return tmp_path


def seasons(data, name):
    """Which season each sample shows: the maker writes it into the first pixel."""
    return [int(data[i]["images"][name][0, 0, 0]) for i in range(len(data))]


def test_images_are_those_of_the_place_and_season(root):
    data = SSL4EOS12v11(root, sensors={"s1": "s1", "s2": "s2c", "l2a": "s2a"})
    assert data.ids == [f"{place:07d}_{k}" for place in PLACES for k in range(4)]
    assert data.groups == [f"{place:07d}" for place in PLACES for _ in range(4)]
    for index in (0, 6, 19):
        for name, image in data[index]["images"].items():
            sensor, place = data.sensors[name], PLACES[index // 4]
            season = season_order(0, sensor, place=f"{place:07d}", products=4)[index % 4]
            made = pixels(sensor, place, season).astype(np.float32)
            expected = torch.from_numpy(made if sensor == "s1" else made - 1000)
            assert image.dtype == torch.float32 and torch.equal(image, expected)
    for name, bands in (("s1", BANDS["s1"]), ("s2", BANDS["s2c"]), ("l2a", BANDS["s2a"])):
        read = [band.upper().replace("B0", "B") for band in bands]
        assert data.modalities[name].bands == tuple(read)
        assert data.modalities[name].size == (264, 264)


def test_each_season_once_in_an_order_of_its_own_for_each_sensor(root):
    data = SSL4EOS12v11(root)
    orders = {name: np.reshape(seasons(data, name), (5, 4)) for name in ("s1", "s2")}
    for order in orders.values():
        assert (np.sort(order, axis=1) == np.arange(4)).all()
    assert (orders["s1"] != orders["s2"]).any()
    alone = SSL4EOS12v11(root, sensors=S1)  # and whatever else is read
    assert seasons(alone, "s1") == orders["s1"].ravel().tolist()
    assert seasons(SSL4EOS12v11(root, sensors=S1, seed=1), "s1") != orders["s1"].ravel().tolist()
    one = SSL4EOS12v11(root, seasons="one")
    assert one.ids == [f"{place:07d}_0" for place in PLACES]
    assert seasons(one, "s2") == orders["s2"][:, 0].tolist()


def test_splits(copied):
    assert len(SSL4EOS12v11(copied)) == 20  # those that there are
    make_ssl4eo_s12_v11(copied, [(3,)], split="val")
    assert [len(SSL4EOS12v11(copied, split, sensors=S1)) for split in ("train", "val", None)] == [
        20,
        4,
        24,
    ]
    assert SSL4EOS12v11(copied, "val").groups == ["0000003"] * 4
    with pytest.raises(ConfigError, match="split is 'test'; choose from train, val"):
        SSL4EOS12v11(copied, "test")


def test_sensors_are_matched_by_the_names_of_places(copied):
    folder = copied / "train" / "S2L1C"
    make_file(folder / file_name(1), "s2c", FILES[0][::-1])
    (folder / file_name(2)).unlink()
    make_file(folder / file_name(3), "s2c", (99,))
    data = SSL4EOS12v11(copied)
    assert data.groups[::4] == [f"{place:07d}" for place in (*PLACES, 99)]
    assert data.present["s1"].tolist() == [True] * 20 + [False] * 4
    assert data.present["s2"].tolist() == [True] * 12 + [False] * 8 + [True] * 4
    for index in range(12):
        images = data[index]["images"]
        assert [images[name][0, 0, 1] for name in ("s1", "s2")] == [mark(PLACES[index // 4])] * 2
    assert data[12]["images"].keys() == {"s1"} and data[20]["images"].keys() == {"s2"}
    make_file(folder / file_name(2), "s2c", FILES[1][:1])
    data = SSL4EOS12v11(copied)
    with pytest.raises(
        BadSampleError, match=r"000002\.zarr\.zip: lacks place 0000007 of the other"
    ):
        data[16]


def test_offset_is_that_of_the_release_whatever_the_date(root, tmp_path, caplog):
    assert SSL4EOS12v11(root)[0]["images"]["s2"].median() == pytest.approx(450, abs=50)
    assert not caplog.records
    raw = SSL4EOS12v11(root, offset=0)[0]["images"]["s2"]
    assert "set offset to 1000" in caplog.text and raw.median() == pytest.approx(1450, abs=50)
    caplog.clear()
    make_ssl4eo_s12_v11(tmp_path, FILES[:1], offset=0)
    SSL4EOS12v11(tmp_path)
    assert "set offset to 0" in caplog.text
    assert SSL4EOS12v11(tmp_path, offset=0)[0]["images"]["s2"].median() > 300


def test_statistics_are_of_values_without_the_offset(root):
    """The README states them with it: 2607.345 for B1 of L1C, 2849.625 for B12 of L2A."""
    data = SSL4EOS12v11(root, sensors={"s1": "s1", "c": "s2c", "a": "s2a"})
    assert data.modalities["c"].mean[0] == pytest.approx(2607.345 - 1000)
    assert data.modalities["a"].mean[-1] == pytest.approx(2849.625 - 1000)
    assert data.modalities["s1"].mean == (-12.577, -20.265)
    changed = SSL4EOS12v11(root, modalities={"s2": "sentinel2-l1c", "s1": {"cut": 0}})
    assert changed.modalities["s2"].mean[0] == 1605.575 and changed.modalities["s1"].cut == 0


class Counted:
    """An array that counts what is read of it."""

    def __init__(self, array, reads):
        self.array, self.reads = array, reads
        self.shape, self.chunks = array.shape, array.chunks

    def __getitem__(self, key):
        self.reads.append(key)
        return self.array[key]


@pytest.mark.parametrize(("chunk", "reads_a_file"), [(None, 4), (2, 8), (1, 12)])
def test_read_in_order_a_chunk_is_decompressed_once(tmp_path, monkeypatch, chunk, reads_a_file):
    for number in (1, 2):
        places = range(10 * number, 10 * number + 3)
        path = tmp_path / "train" / "S1GRD" / file_name(number)
        make_file(path, "s1", places, chunk=chunk)
    data, reads, opened = SSL4EOS12v11(tmp_path, sensors=S1), [], ssl4eo_v11._opened
    monkeypatch.setattr(
        ssl4eo_v11,
        "_opened",
        lambda path: dataclasses.replace(opened(path), bands=Counted(opened(path).bands, reads)),
    )
    for index in range(24):
        image = data[index]["images"]["s1"]
        assert image[0, 0, 1] == 10 * (1 + index // 12) + index // 4 % 3
    assert len(reads) == 2 * reads_a_file
    for index in (0, 23, 1):  # of two files in turn, nothing is kept of the other
        data[index]
    assert len(data._kept["s1"][1]) == 1


def test_what_is_open_stays_in_its_process(root):
    data = SSL4EOS12v11(root)
    expected = [data[i]["images"]["s2"] for i in range(len(data))]
    assert data._kept and len(pickle.dumps(data)) < 20_000
    for context in ("fork", "forkserver"):
        loader = DataLoader(
            pickle.loads(pickle.dumps(data)) if context == "forkserver" else data,
            batch_size=4,
            collate_fn=Collate(data.modalities, data.targets),
            num_workers=2,
            multiprocessing_context=context,
        )
        batches = list(loader)
        assert [id_ for batch in batches for id_ in batch["ids"]] == data.ids
        assert torch.equal(torch.cat([b["images"]["s2"] for b in batches]), torch.stack(expected))


def test_open_files_are_few(tmp_path):
    places = [(number,) for number in range(20)]
    data = SSL4EOS12v11(make_ssl4eo_s12_v11(tmp_path, places, ("s1",)), sensors=S1)
    assert [int(data[4 * i]["images"]["s1"][0, 0, 1]) for i in range(20)] == list(range(20))
    assert ssl4eo_v11._open.cache_info().currsize <= 16


def test_bad_files_are_named(copied):
    s1, s2 = (copied / "train" / folder / file_name(2) for folder in ("S1GRD", "S2L1C"))
    whole = s2.read_bytes()
    s2.write_bytes(whole[: len(whole) // 2])
    data = SSL4EOS12v11(copied)
    with pytest.raises(BadSampleError, match=r"S2L1C.*000002\.zarr\.zip: cannot be read \(File is"):
        data[12]
    assert data[0]["images"].keys() == {"s1", "s2"}
    good = s1.read_bytes()
    ssl4eo_v11._open.cache_clear()
    s1.write_bytes(b"")  # of the sensor that names the places, and the other is broken, too
    with pytest.raises(BadSampleError, match=r"000002\.zarr\.zip: cannot be read"):
        SSL4EOS12v11(copied)
    s2.write_bytes(whole)
    data = SSL4EOS12v11(copied)  # now the other names them
    with pytest.raises(BadSampleError, match="S1GRD"):
        data[12]
    s1.write_bytes(good)
    names, bands = np.array(["0000007"]), np.array(["vv", "vh"])
    image = np.full((1, 4, 2, 264, 264), -12, np.float16)
    bare = SSL4EOS12v11(copied, sensors=S1)
    for arrays, said in (
        ({"band": bands, "sample": names}, "has no array bands; download"),
        ({"bands": image[..., :99], "band": bands, "sample": names}, r"shape \(1, 4, 2, 264, 99\)"),
        ({"bands": image[0, 0], "band": bands, "sample": names}, r"shape \(2, 264, 264\) for 1"),
        ({"bands": image, "band": bands, "sample": names[:0]}, "for 0 places and 2 bands, not"),
        ({"bands": image, "band": np.array(["vv", "hh"]), "sample": names}, "no band vh .* vv, hh"),
        ({"bands": image * np.inf, "band": bands, "sample": names}, "infinite or no values of"),
        ({"bands": image * np.nan, "band": bands, "sample": names}, "infinite or no values of"),
    ):
        chunks = arrays["bands"].shape if "bands" in arrays else ()
        write_zarr_zip(s1, arrays, chunks)
        ssl4eo_v11._open.cache_clear()
        with pytest.raises(BadSampleError, match=f"000002.zarr.zip: .*{said}") as raised:
            bare[16]
        assert "\n" not in str(raised.value)


def test_names_of_any_length_are_read_too(tmp_path):
    """Some writers give strings the type of variable length, which NumPy reads as StringDType."""
    strings = np.dtypes.StringDType()
    arrays = {
        "bands": np.stack([[pixels("s1", 8, season) for season in range(4)]]),
        "band": np.array(BANDS["s1"], strings),
        "sample": np.array(["0000008"], strings),
    }
    path = tmp_path / "train" / "S1GRD" / file_name(1)
    write_zarr_zip(path, arrays, (1, 1, 2, 264, 264))
    data = SSL4EOS12v11(tmp_path, sensors=S1)
    assert data.groups == ["0000008"] * 4
    assert sorted(seasons(data, "s1")) == [0, 1, 2, 3]


def test_a_damaged_chunk_is_a_bad_sample(copied):
    path = copied / "train" / "S1GRD" / file_name(2)
    data = SSL4EOS12v11(copied, sensors=S1)
    content = bytearray(path.read_bytes())
    start = content.index(b"bands/0.0.0.0.0") + 40
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)
    ssl4eo_v11._open.cache_clear()
    read = [SkipBad(data)[i] for i in range(12, 16)]
    assert sorted(len(sample["images"]) for sample in read) == [0, 1, 1, 1]
    (bad,) = (sample["bad"] for sample in read if "bad" in sample)
    assert bad[0] == str(path) and "cannot be read" in bad[1]


def test_wrong_layouts_and_options(root, tmp_path):
    with pytest.raises(DataError, match=r"S1GRD: no such folder; expected ROOT/.*SSL4EO-S12-v1\.1"):
        SSL4EOS12v11(tmp_path)
    folder = tmp_path / "train" / "S1GRD"
    folder.mkdir(parents=True)
    (folder / "ssl4eos12_shard_000001.tar").touch()
    with pytest.raises(DataError, match=r"no file in what is there \(ssl4eos12_shard_000001.tar\)"):
        SSL4EOS12v11(tmp_path, sensors=S1)
    make_file(folder / file_name(1), "s1", (1,))
    make_file(tmp_path / "train" / "S2L1C" / file_name(2), "s2c", (2,))
    with pytest.raises(
        DataError, match=r"no file in common \(S1GRD/ssl4eo.*000001.*S2L1C/.*000002"
    ):
        SSL4EOS12v11(tmp_path)
    make_file(folder / file_name(2), "s1", (1,))
    with pytest.raises(DataError, match="some places are in two files"):
        SSL4EOS12v11(tmp_path, sensors=S1)
    for wrong, said in (
        (
            {"sensors": {"s1": "s1", "s2": "S2L1C"}},
            r"v11: sensors has 'S2L1C'; choose from s1, s2c",
        ),
        ({"sensors": {}}, "v11: sensors is empty"),
        ({"seasons": "some"}, r"seasons has 'some'; choose from all, one"),
        ({"offset": 1}, r"offset has 1; choose from auto, 0, 1000"),
    ):
        with pytest.raises(ConfigError, match=said):
            SSL4EOS12v11(root, **wrong)


def test_without_zarr_one_line_says_what_to_install(root, monkeypatch):
    real = builtins.__import__

    def lacking(name, *rest, **named):
        if name.split(".")[0] == "zarr":
            raise ImportError(name, name=name)  # as Python does
        return real(name, *rest, **named)

    ssl4eo_v11._open.cache_clear()
    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(DataError, match=r"needs zarr: pip install 'decur\[eo\]'"):
        SSL4EOS12v11(root, sensors=S1)


@pytest.mark.slow  # as with the first release
def test_pretrain_and_transfer_to_bigearthnet(root, tmp_path):
    run = tmp_path / "pre"
    presets = "--data.modalities={s1: sentinel1, s2: sentinel2-l1c}"
    main(
        [
            *("pretrain", "--data=SSL4EOS12v11", f"--data.root={root}", f"--run={run}"),
            *("--data.sensors={s1: s1, s2: s2c}", presets, "--projector.width=16"),
            *("--encoder.name=test_resnet", "--loader.workers=0", "--loader.batch_size=6"),
            *("--views.size=32", "--trainer.max_epochs=1", "--trainer.accelerator=cpu"),
        ]
    )
    assert sorted(file.stem for file in (run / "encoders").iterdir()) == ["s1", "s2"]
    labels, splits = [["Pastures"], ["Marine waters"]] * 4, ["train"] * 4 + ["test"] * 4
    labelled = make_bigearthnet_v2(tmp_path / "ben", labels, splits)
    main(
        [
            *("transfer", "--data=BigEarthNetV2", f"--data.root={labelled}", f"--encoders={run}"),
            *(
                presets,
                "--missing_bands=empty",
                "--train_split=train",
                "--test_split=test",
                "--size=32",
            ),
            *("--bootstrap=0", "--loader.workers=0", "--device=cpu"),
            f"--run={tmp_path / 'transfer'}",
        ]
    )
    results = json.loads((tmp_path / "transfer" / "results.json").read_text())
    assert (results["train"], results["test"]) == (4, 4)
    assert results["modalities"] == ["s1", "s2"]
