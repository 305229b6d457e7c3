"""Packed data gives what the source gives, and says so where it cannot."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from make_folder import make_folder, write
from make_ssl4eo_s12 import make_ssl4eo_s12
from torch.utils.data import DataLoader, Subset

from decur import Modality
from decur.data import SSL4EOS12, PackedPairs, PairedDataset, PairedFolder, SkipBad, Target
from decur.data.base import Derived
from decur.data.packed import pack
from decur.data.packed.items import decode, encode, matches, zstd
from decur.data.packed.reading import verify
from decur.data.packed.writing import STATE, _Chunks, _open, _plan, parse_part, quantized
from decur.errors import BadSampleError, ConfigError, DataError, RunLostError
from decur.pretrain.data import EpochBatches

pytest.importorskip("litdata")

SMALL = 0.003  # MB: a few samples in a chunk


@pytest.fixture
def folder(tmp_path):
    ids = [f"{i:02}" for i in range(37)]
    root = make_folder(tmp_path / "src", {"a": ids, "b": ids[4:]}, bands={"a": 3})
    rng = np.random.default_rng(1)
    write(root / "b" / "05.npy", rng.normal(size=(1, 8, 8)).astype(np.float32))
    (root / "b" / "05.png").unlink()
    for id_ in ids[:20]:
        write(root / "mask" / f"{id_}.png", rng.integers(0, 3, (8, 8), dtype=np.uint8))
    rows = [f"{i},{'xyz'[int(i) % 3]},{int(i) / 7},{int(i) % 2}" for i in ids[:-2]]
    (root / "labels.csv").write_text("\n".join(["id,kind,height,wet", *rows]))
    rows = [f"{i},train,{int(i) // 4}" for i in ids]
    (root / "splits.csv").write_text("\n".join(["id,split,group", *rows]))
    (root / "a" / "07.png").write_bytes(b"")
    return PairedFolder(root)


def assert_same_sample(one, other):
    assert one["id"] == other["id"]
    for key in ("images", "target"):
        mine, theirs = one.get(key, {}), other.get(key, {})
        assert set(mine) == set(theirs)
        for name, tensor in mine.items():
            assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, equal_nan=True)


def files(folder):
    """Contents by name, without the time of writing."""
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    index = json.loads(found.pop("index.json"))
    return found, index["chunks"], index["config"]


class AllKinds(PairedDataset):
    """Every kind of target, some unknown; a sensor missing in places."""

    def __init__(self):
        self.modalities = {
            name: Modality(name=name, bands=("x",), scaling="range", size=(4, 4)) for name in "ab"
        }
        self.ids = [f"é{i}" for i in range(9)]
        self.present = {"a": np.ones(9, bool), "b": np.arange(9) % 2 == 0}
        self.targets = {
            "class": Target("class", ("p", "q")),
            "many": Target("multilabel", ("p", "q", "r"), modalities=("a",)),
            "number": Target("scalar"),
            "mask": Target("mask", ("p", "q")),
        }

    def read(self, index):
        """A function of the index."""
        rng = torch.Generator().manual_seed(index)
        images = {"a": torch.rand(1, 4, 4, generator=rng)}
        if self.present["b"][index]:
            images["b"] = torch.randint(0, 9, (1, 4, 4), generator=rng, dtype=torch.int16)
        target = {"class": torch.tensor(index % 2), "number": torch.tensor(float("nan"))}
        if index % 3:
            target["many"] = torch.rand(3, generator=rng).round()
            target["mask"] = torch.randint(0, 2, (4, 4), generator=rng)
        return {"id": self.ids[index], "images": images, "target": target}


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_a_folder_comes_back_as_it_was(folder, tmp_path, compression):
    assert pack(folder, tmp_path / "out", compression=compression, chunk_mb=SMALL)
    packed = PackedPairs(tmp_path / "out")
    kept = [i for i, id_ in enumerate(folder.ids) if id_ != "07"]
    assert len(packed.chunks) > 3 and packed.ids == [folder.ids[i] for i in kept]
    assert packed.modalities == folder.modalities and packed.targets == folder.targets
    assert packed.groups == [folder.groups[i] for i in kept]
    labels = folder.describe().partition(", labels ")[2]
    assert labels and packed.describe().endswith(labels)
    for name, has in folder.present.items():
        assert (packed.present[name] == has[kept]).all()
    for row, i in enumerate(kept):
        assert_same_sample(packed[row], folder[i])
    assert_same_sample(packed[-1], folder[-1])
    ((id_, path, reason),) = packed.bad
    assert id_ == "07" and path.endswith("07.png") and "empty" in reason
    packed[0]["images"]["a"].zero_()  # a reader's own memory
    assert_same_sample(packed[0], folder[0])
    with pytest.raises(IndexError):
        packed[36]


def test_every_kind_of_target_survives(tmp_path):
    data = AllKinds()
    pack(data, tmp_path / "out", chunk_mb=0.001)
    packed = PackedPairs(tmp_path / "out")
    assert packed.targets == data.targets and packed.groups is None
    for i in range(9):
        assert_same_sample(packed[i], data[i])


def test_ssl4eo_with_its_seasons_gives_the_same_samples(tmp_path):
    root = make_ssl4eo_s12(tmp_path / "src", {"s1": [0, 3], "s2c": [0, 3]})
    data = SSL4EOS12(root)
    pack(data, tmp_path / "out", chunk_mb=10)
    packed = PackedPairs(tmp_path / "out")
    assert packed.ids == data.ids and packed.groups == data.groups
    assert packed.modalities == data.modalities
    for i in range(len(data)):
        assert_same_sample(packed[i], data[i])


def test_8_bits_are_the_scaled_values_rounded(folder, tmp_path):
    data = PairedFolder(
        folder.root,
        {
            "a": {"bands": ["r", "g", "b"], "mean": [90, 100, 110], "std": [40, 50, 60], "cut": 5},
            "b": {"bands": ["b"], "scaling": "image"},
        },
    )
    pack(data, tmp_path / "out", quantize=True, chunk_mb=SMALL)
    packed = PackedPairs(tmp_path / "out")
    assert packed.modalities["a"] == quantized(data.modalities["a"])
    for name, modality in data.modalities.items():
        stored = packed[5]["images"][name]
        wanted = modality.scale(data[5]["images"][name])
        assert stored.dtype == torch.uint8
        off = (packed.modalities[name].scale(stored) - wanted).abs().max()
        assert off <= 0.5 / 255 + 1e-6


def test_workers_change_no_byte(folder, tmp_path):
    pack(folder, tmp_path / "one", chunk_mb=SMALL)
    pack(folder, tmp_path / "two", chunk_mb=SMALL, workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_parts_in_any_order_make_the_same_whole(folder, tmp_path):
    pack(folder, tmp_path / "whole", chunk_mb=SMALL)
    assert not pack(folder, tmp_path / "parts", chunk_mb=SMALL, part="2/3")
    with pytest.raises(DataError, match=r"no decur\.json"):
        PackedPairs(tmp_path / "parts")
    assert not pack(folder, tmp_path / "parts", chunk_mb=SMALL, part="3/3")
    assert pack(folder, tmp_path / "parts", chunk_mb=SMALL, part="1/3")
    assert files(tmp_path / "whole") == files(tmp_path / "parts")


def test_a_slurm_array_is_as_many_parts(monkeypatch):
    assert parse_part(None) == (1, 1)
    for name, value in {"COUNT": 4, "MIN": 2, "STEP": 2, "ID": 6}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert parse_part(None) == (3, 4) and parse_part("1/2") == (1, 2)
    for wrong in ("0/2", "3/2", "half"):
        with pytest.raises(ConfigError, match="part"):
            parse_part(wrong)
    for name, value in {"COUNT": 2, "MIN": 3, "MAX": 5, "STEP": 1}.items():  # --array=3,5
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    for task in (3, 5):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        with pytest.raises(ConfigError, match="leaves numbers out between 3 and 5"):
            parse_part(None)
    monkeypatch.delenv("SLURM_ARRAY_TASK_MAX")
    with pytest.raises(ConfigError, match="leaves numbers out"):
        parse_part(None)


def test_after_sigkill_the_same_command_ends_with_the_same_bytes(folder, tmp_path):
    pack(folder, tmp_path / "whole", chunk_mb=SMALL)
    code = (
        "import sys, time; from decur.data import PairedFolder; from decur.data.packed import pack"
        "\nclass Slow(PairedFolder):\n"
        "    def read(self, i):\n        time.sleep(0.05); return super().read(i)\n"
        "Slow.__name__ = 'PairedFolder'\n"
        f"pack(Slow(sys.argv[1]), sys.argv[2], chunk_mb={SMALL}, workers=1)"
    )
    out = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder.root), str(out)])
    end = time.monotonic() + 60
    while len(list((out / STATE).glob("[0-9].json"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = [f"chunk-0-{path.stem}.bin" for path in (out / STATE).glob("[0-9].json")]
    assert len(done) >= 2 and not (out / "decur.json").exists()
    before = {name: (out / name).stat().st_mtime_ns for name in done}
    assert pack(folder, out, chunk_mb=SMALL)
    assert all((out / name).stat().st_mtime_ns == before[name] for name in done)
    while (out / STATE).exists() and time.monotonic() < end:  # a worker may outlive what is killed
        time.sleep(0.01)
    assert files(out) == files(tmp_path / "whole")


def test_a_worker_that_outlives_its_command_leaves_nothing_behind(folder, tmp_path):
    out = tmp_path / "out"
    plan = _plan(folder, None, False, SMALL)
    _open(out, plan)
    assert pack(folder, out, chunk_mb=SMALL)  # the same command again
    whole = files(out)
    assert _Chunks(folder, out, plan)[1] is None  # and only now the worker of the first
    assert not (out / STATE).exists()
    assert files(out) == whole


def test_what_killed_commands_leave_half_written_goes(folder, tmp_path):
    out = tmp_path / "out"
    pack(folder, out, chunk_mb=SMALL)
    whole = {path.name for path in out.iterdir()}
    (out / ".samples.npz.4711.tmp").write_bytes(b"half")
    (out / STATE).mkdir()  # killed between the last file and this folder's end
    assert pack(folder, out, chunk_mb=SMALL)
    assert {path.name for path in out.iterdir()} == whole


def test_a_folder_that_is_deleted_meanwhile_is_told(folder, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(RunLostError, match="deleted meanwhile"):
        pack(folder, out, chunk_mb=SMALL, progress=lambda done, of: shutil.rmtree(out))


def test_a_reader_makes_no_deleted_folder_anew(folder, tmp_path):
    out = tmp_path / "out"
    plan = _plan(folder, None, False, SMALL)
    assert "No such file" in _Chunks(folder, out, plan)[0]
    assert not out.exists()


def test_a_disk_that_has_become_read_only_is_told_as_lost(folder, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(30, "Read-only file system")

    def stop(done, of):
        monkeypatch.setattr(os, "utime", refuse)
        raise OSError(30, "Read-only file system")

    with pytest.raises(RunLostError, match=r"was lost.*Read-only"):
        pack(folder, tmp_path / "out", chunk_mb=SMALL, progress=stop)


def test_a_full_disk_is_one_line_and_resumable(folder, tmp_path, monkeypatch):
    pack(folder, tmp_path / "whole", chunk_mb=SMALL)
    from litdata.streaming.writer import BinaryWriter

    true = BinaryWriter.write_chunk_to_file

    def full(self, data, filename, compress=None):
        if "-2." in filename:
            raise OSError(28, "No space left on device")
        true(self, data, filename, compress)

    with monkeypatch.context() as patch:
        patch.setattr(BinaryWriter, "write_chunk_to_file", full)
        with pytest.raises(DataError, match=r"No space left.*same command goes on"):
            pack(folder, tmp_path / "out", chunk_mb=SMALL)
    assert len(list((tmp_path / "out").glob("chunk-*"))) == 2
    assert pack(folder, tmp_path / "out", chunk_mb=SMALL)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_too_many_bad_samples_are_tried_anew(folder, tmp_path):
    pack(folder, tmp_path / "whole", chunk_mb=SMALL)
    true = (folder.root / "a" / "08.png").read_bytes()
    for id_ in ("08", "09"):
        (folder.root / "a" / f"{id_}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3 of 37 samples cannot be read.*07\.png"):
        pack(folder, tmp_path / "out", chunk_mb=SMALL)
    (folder.root / "a" / "08.png").write_bytes(true)
    assert pack(folder, tmp_path / "out", chunk_mb=SMALL, max_bad=0.06)
    packed = PackedPairs(tmp_path / "out")
    assert [id_ for id_, *_ in packed.bad] == ["07", "09"]
    assert_same_sample(packed[7], folder[8])


def test_another_source_or_option_is_refused(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    assert pack(folder, tmp_path / "out", chunk_mb=SMALL)  # nothing left to do
    with pytest.raises(ConfigError, match="compression None, not 'zstd'"):
        pack(folder, tmp_path / "out", compression="zstd", chunk_mb=SMALL)
    with pytest.raises(ConfigError, match="not empty"):
        pack(folder, folder.root)
    with pytest.raises(ConfigError, match="chunk_mb"):
        pack(folder, tmp_path / "other", chunk_mb=0)
    other = AllKinds()
    other.ids = ["same"] * 9
    with pytest.raises(DataError, match="'same': two samples"):
        pack(other, tmp_path / "other")


def flip(path, at=-5):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def test_verify_finds_one_flipped_bit(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    verify(PackedPairs(tmp_path / "out"))
    path = tmp_path / "out" / "chunk-0-1.bin"
    flip(path)
    for workers in (0, 1):
        with pytest.raises(DataError, match=r"1 of 36 samples are damaged: .*chunk-0-1\.bin"):
            verify(PackedPairs(tmp_path / "out"), workers=workers)
    flip(path)
    verify(PackedPairs(tmp_path / "out"))


def test_a_flipped_bit_of_a_pixel_is_a_bad_sample_in_each_process(folder, tmp_path):
    out = tmp_path / "packed"
    pack(folder, out)
    data = PackedPairs(out)
    assert all(data[i]["images"] for i in range(len(data)))
    flip(sorted(out.glob("chunk-*.bin"))[0])  # the last pixel of the chunk's last sample
    with pytest.raises(BadSampleError, match="its checksum is wrong"):
        [PackedPairs(out)[i] for i in range(len(data))]


@pytest.mark.parametrize("kind", [0, 1])
def test_checksums_of_both_kinds_are_compared(folder, kind):
    item = np.frombuffer(encode(folder[0]), dtype=np.uint8).copy()
    assert item[9] == 1
    if kind == 0:  # as version 0.1 wrote it
        item[9] = 0
        item[:4] = np.frombuffer(zlib.crc32(item[4:].tobytes()).to_bytes(4, "little"), np.uint8)
    assert matches(item)
    item[-3] ^= 4
    assert not matches(item)


def test_a_damaged_compressed_sample_is_a_bad_sample(folder, tmp_path):
    pack(folder, tmp_path / "out", compression="zstd", chunk_mb=SMALL)
    packed = PackedPairs(tmp_path / "out")
    path = tmp_path / "out" / packed.chunks[0].name
    for at in (4, 90, 100, 110, 120, 200):  # the table, lengths, frames
        flip(path, at)
        data = SkipBad(PackedPairs(tmp_path / "out"))
        for i in range(packed.chunks[0].samples):
            sample = data[i]
            assert sample["images"] or "damaged" in sample["bad"][1]
        flip(path, at)
    flip(path, 4)
    with pytest.raises(BadSampleError, match=r"chunk-0-0\.bin: .*table of samples is wrong"):
        PackedPairs(tmp_path / "out")[0]


def test_cut_short_missing_and_foreign_files_are_one_line_each(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    whole = PackedPairs(tmp_path / "out")

    def copy(name):
        return shutil.copytree(tmp_path / "out", tmp_path / name)

    chunk = copy("cut") / "chunk-0-2.bin"
    chunk.write_bytes(chunk.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"chunk-0-2\.bin: has \d+ bytes, should have \d+"):
        PackedPairs(tmp_path / "cut")
    (copy("gone") / "chunk-0-0.bin").unlink()
    with pytest.raises(DataError, match=r"chunk-0-0\.bin: no such file"):
        PackedPairs(tmp_path / "gone")
    (tmp_path / "out" / "chunk-0-0.bin").unlink()  # while it is being read
    with pytest.raises(BadSampleError, match="no such file"):
        whole[0]
    (copy("npz") / "samples.npz").write_bytes(b"PK")
    for broken in ("gone", "npz"):
        with pytest.raises(DataError, match=broken):
            PackedPairs(tmp_path / broken)
    (copy("json") / "decur.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="format 2"):
        PackedPairs(tmp_path / "json")
    with pytest.raises(DataError, match="is no packed data"):
        PackedPairs(tmp_path / "nowhere")


def test_pickles_are_refused_and_never_opened(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    index = tmp_path / "out" / "index.json"
    values = json.loads(index.read_text())
    for key, value in (("data_format", ["pickle"]), ("compression", "zstd")):
        changed = {**values, "config": {**values["config"], key: value}}
        index.write_text(json.dumps(changed))
        with pytest.raises(DataError, match="refused"):
            PackedPairs(tmp_path / "out")
    values["chunks"][0]["filename"] = "../elsewhere"
    index.write_text(json.dumps(values))
    with pytest.raises(DataError, match="no file's name"):
        PackedPairs(tmp_path / "out")


def test_a_pickle_in_samples_is_refused(folder, tmp_path):
    class Harm:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "harm"),))

    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    np.savez(tmp_path / "out" / "samples.npz", ids=np.array([Harm()], dtype=object))
    with pytest.raises(DataError, match="samples"):
        PackedPairs(tmp_path / "out")
    (tmp_path / "out" / "samples.npz").write_bytes(pickle.dumps(Harm()))
    with pytest.raises(DataError, match="samples"):
        PackedPairs(tmp_path / "out")
    assert not (tmp_path / "harm").exists()


def test_litdata_reads_the_same_items(folder, tmp_path):
    from litdata import StreamingDataset

    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    packed = PackedPairs(tmp_path / "out")
    theirs = StreamingDataset(str(tmp_path / "out"))
    assert len(theirs) == len(packed)
    for i in (0, 9, 35):
        assert bytes(theirs[i]) == packed.read_bytes(i).tobytes()


# -- an object store ----------------------------------------------------------------------------


def test_a_store_is_read_through_a_cache_of_limited_size(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    near, cache = PackedPairs(tmp_path / "out"), tmp_path / "cache"
    size = max(chunk.size for chunk in near.chunks)
    far = PackedPairs(f"local:{tmp_path / 'out'}", cache=cache, cache_gb=2 * size / 1e9)
    assert far.ids == near.ids
    for i in np.random.default_rng(0).permutation(len(far)).tolist():
        assert_same_sample(far[i], near[i])
        assert sum(p.stat().st_size for p in cache.glob("chunk-*.bin")) <= 2 * size
    loader = DataLoader(far, batch_size=None, num_workers=2)  # two who delete and download
    assert [sample["id"] for sample in loader] == near.ids
    with pytest.raises(DataError, match="cannot be downloaded"):
        PackedPairs(f"local:{tmp_path / 'nowhere'}", cache=tmp_path / "other")


def test_the_order_from_a_store_suits_its_chunks(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    far = PackedPairs(f"local:{tmp_path / 'out'}", cache=tmp_path / "cache", window=2)
    near = PackedPairs(tmp_path / "out")
    orders = [far.order(np.random.default_rng([0, epoch])) for epoch in (0, 0, 1)]
    assert (orders[0] == orders[1]).all() and (orders[0] != orders[2]).any()
    assert all(sorted(order) == list(range(36)) for order in orders)
    in_chunk = np.repeat(np.arange(len(far.chunks)), [c.samples for c in far.chunks])
    seen = in_chunk[orders[0]]
    spans = [np.flatnonzero(seen == c) for c in range(len(far.chunks))]
    most = 2 * max(c.samples for c in far.chunks)
    assert all(span[-1] - span[0] < most for span in spans)  # each chunk within its window
    assert (near.order(np.random.default_rng(3)) == np.random.default_rng(3).permutation(36)).all()


@pytest.mark.parametrize("where", ["folder", "store"])
def test_two_ranks_with_two_workers_share_an_epoch_without_repeats_or_losses(
    folder, tmp_path, where
):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    root = tmp_path / "out" if where == "folder" else f"local:{tmp_path / 'out'}"
    data = PackedPairs(root, cache=tmp_path / "cache", window=2)

    def ids(rank, start=0):
        batches = EpochBatches(len(data), 6, seed=1, rank=rank, world=2, order=data.order)
        batches.set_epoch(3)
        batches.start = start
        loader = DataLoader(
            data,
            batch_sampler=batches,
            num_workers=2,
            collate_fn=lambda samples: [sample["id"] for sample in samples],
        )
        return list(loader)

    ranks = [ids(0), ids(1)]
    seen = [id_ for rank in ranks for batch in rank for id_ in batch]
    assert len(data) == 36 and sorted(seen) == data.ids  # uneven chunks, even batches
    for rank in (0, 1):
        assert ids(rank, start=2) == ranks[rank][2:]  # resumed in the middle
    some = Subset(data, range(31))  # the last, smaller batch is dropped, nothing else
    assert len(EpochBatches(len(some), 6, seed=1)) == 5


def test_a_store_packed_anew_is_downloaded_anew(folder, tmp_path):
    out, cache = tmp_path / "out", tmp_path / "cache"

    def far():
        return PackedPairs(f"local:{out}", cache=cache)

    def pack_anew():
        shutil.rmtree(out)
        pack(PairedFolder(folder.root), out, chunk_mb=SMALL)
        return PackedPairs(out)

    pack(folder, out, chunk_mb=SMALL)
    kept = far()
    before = kept[0]
    assert_same_sample(pack_anew()[0], before)
    path = cache / kept.chunks[0].name
    written = path.stat().st_mtime_ns
    assert_same_sample(far()[0], before)
    assert path.stat().st_mtime_ns == written  # the same data: the cache holds
    write(folder.root / "a" / "00.png", np.full((3, 8, 8), 9, np.uint8))
    near = pack_anew()
    assert [c.size for c in near.chunks] == [c.size for c in kept.chunks]
    assert_same_sample(far()[0], near[0])
    assert (near[0]["images"]["a"] == 9).all()
    header = json.loads((out / "decur.json").read_text())
    del header["stamp"]  # as older versions wrote it
    (out / "decur.json").write_text(json.dumps(header))
    for _ in range(2):
        assert_same_sample(far()[0], near[0])


def test_other_labels_are_another_source(folder, tmp_path):
    pack(folder, tmp_path / "out", chunk_mb=SMALL)
    labels = folder.root / "labels.csv"
    labels.write_text(labels.read_text().replace("00,x,0.0,0", "00,y,0.0,0"))
    changed = PairedFolder(folder.root)
    assert changed.targets == folder.targets
    with pytest.raises(ConfigError, match="other samples, sensors or labels"):
        pack(changed, tmp_path / "out", chunk_mb=SMALL)


def test_a_changed_picture_is_noticed_and_a_moved_folder_is_the_same(folder, tmp_path):
    shutil.copytree(folder.root, tmp_path / "moved")  # times are kept
    data, out = PairedFolder(tmp_path / "moved"), tmp_path / "out"
    pack(folder, out, chunk_mb=SMALL)
    assert pack(data, out, chunk_mb=SMALL)
    changed = Path(data.files(3)[0])
    changed.write_bytes(changed.read_bytes())
    os.utime(changed, ns=(0, 0))
    with pytest.raises(ConfigError, match="files that have changed since, in size or time"):
        pack(data, out, chunk_mb=SMALL)

    header = json.loads((out / "decur.json").read_text())
    del header["files"]  # as version 0.1 wrote it
    (out / "decur.json").write_text(json.dumps(header))
    assert pack(data, out, chunk_mb=SMALL)


def test_what_was_packed_of_a_picture_that_has_changed_is_packed_anew(folder, tmp_path, caplog):
    out = tmp_path / "out"
    assert not pack(folder, out, chunk_mb=SMALL, part="1/2")  # chunks 0, 2, ...
    changed = Path(folder.files(0)[0])
    write(changed, 255 - folder[0]["images"][next(iter(folder.modalities))].numpy())
    assert not pack(folder, out, chunk_mb=SMALL, part="2/2")  # and not the old chunk 0 with it
    assert "1 of 10 chunks" in caplog.text and "again with --part 1/2" in caplog.text
    assert pack(folder, out, chunk_mb=SMALL, part="1/2")
    assert_same_sample(PackedPairs(out)[0], PairedFolder(folder.root)[0])


def test_data_that_was_packed_anew_has_another_digest_and_a_copy_the_same(folder, tmp_path):
    pack(folder, tmp_path / "one", chunk_mb=SMALL)
    one = PackedPairs(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "copy", copy_function=shutil.copyfile)
    write(Path(folder.files(0)[0]), 255 - one[0]["images"][next(iter(folder.modalities))].numpy())
    pack(PairedFolder(folder.root), tmp_path / "two", chunk_mb=SMALL)
    other = PackedPairs(tmp_path / "two")
    assert one.ids == other.ids and one.file_digest([1]) != other.file_digest([1])
    assert one.file_digest() == PackedPairs(tmp_path / "copy").file_digest()
    some = np.array([2, 1])
    assert Derived(one, some).file_digest() == one.file_digest([2, 1])
    assert Derived(one, some).file_digest([1]) != Derived(other, some).file_digest([1])


@pytest.mark.parametrize(
    "wrong", [{"workers": -1}, {"workers": 10**9}, {"max_bad": -1}, {"max_bad": float("inf")}]
)
def test_options_out_of_range_are_named(folder, tmp_path, wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        pack(folder, tmp_path / "out", **wrong)


@pytest.mark.parametrize(
    ("values", "width"),
    [((0, 255), 1), ((-1, 2), 1), ((-1, 300), 2), ((0, 70_000), 4), ((-1, 2**40), 8)],
)
def test_masks_are_stored_in_the_smallest_type_and_read_as_before(values, width):
    mask = torch.tensor(values).repeat(64, 32)  # (64, 64)
    narrow = mask.to(torch.int8 if max(values) < 100 else torch.int16)  # a type of its own
    targets = {"mask": mask, "kind": torch.tensor(1), "own": narrow}
    sample = {"id": "a", "images": {"x": torch.rand(1, 3, 3)}, "target": targets}
    item = np.frombuffer(encode(sample), dtype=np.uint8).copy()
    assert len(item) - mask.numel() * width - narrow.nbytes < 1024
    found = decode(item)
    assert_same_sample(found, sample)


def test_compressed_photographs_are_stored_as_differences():
    x = torch.linspace(0, 6, 80)
    smooth = (127 + 100 * torch.sin(x)[:, None] * torch.cos(x)).to(torch.uint8)
    noise = torch.randint(0, 255, (3, 80, 80), generator=torch.Generator().manual_seed(0))
    for picture, smaller in ((smooth.expand(3, 80, 80), True), (noise.to(torch.uint8), False)):
        sample = {"id": "a", "images": {"rgb": picture, "height": torch.rand(1, 4, 4)}}
        item = np.frombuffer(encode(sample, compress=True), dtype=np.uint8).copy()
        assert_same_sample(decode(item), sample)
        plain = len(zstd().compress(picture.contiguous().numpy().tobytes()))
        assert (len(item) < plain) is smaller


def test_a_header_that_names_a_key_twice_is_refused(folder, tmp_path):
    pack(folder, tmp_path / "packed")
    header = tmp_path / "packed" / "decur.json"
    header.write_text(header.read_text().replace("{", '{"format": 0, ', 1))
    with pytest.raises(DataError, match=r"decur\.json: .*'format' stands there twice"):
        PackedPairs(tmp_path / "packed")


@pytest.mark.parametrize("key", ["size", "bands"])
def test_samples_that_are_not_as_the_header_says_are_bad(folder, tmp_path, key):
    pack(folder, tmp_path / "packed")
    file = tmp_path / "packed" / "decur.json"
    header = json.loads(file.read_text())
    modality = next(iter(header["modalities"].values()))
    modality[key] = [9, 9] if key == "size" else [*modality["bands"], "another"]
    file.write_text(json.dumps(header))
    with pytest.raises(BadSampleError, match=f"image '{modality['name']}' is .*, not "):
        PackedPairs(tmp_path / "packed")[0]
    del modality["size"]
    file.write_text(json.dumps(header))
    with pytest.raises(DataError, match="has no size"):
        PackedPairs(tmp_path / "packed")
