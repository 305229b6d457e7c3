"""What is cached, resumed or refused is known by what it was made from."""

import functools
import importlib
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from decur.data import PairedDataset, PairedFolder, Target
from decur.data.selection import select
from decur.digest import CannotBeTold, digest, try_digest
from decur.modality import Modality
from decur.transfer.splits import join

FACTOR = 2


class Mine(PairedDataset):
    """An in-memory data set as a person writes it in a notebook."""

    def __init__(self, pictures, kinds, transform=None):
        self.pictures, self.kinds, self.transform = pictures, kinds, transform
        self.ids = [f"{i:05}" for i in range(len(pictures))]
        self.modalities = {"cam": Modality(name="cam", bands=("R", "G", "B"), scaling="range")}
        self.present = {"cam": np.ones(len(pictures), bool)}
        self.targets = {"kind": Target("class", ("x", "y"))}

    def read(self, index):
        raise NotImplementedError


@dataclass
class Settings:
    rate: float = 1.0
    names: tuple[str, ...] = ("a",)


def brighten(x):
    return x * FACTOR


def shifted(by):
    return lambda x: x + by


def differ(*values):
    return len({digest(value) for value in values}) == len(values)


def test_values_of_different_types_differ():
    assert differ(1, 1.0, True, "1", b"1", None, 1j, [1], {1}, {1: 1}, np.array(1), torch.tensor(1))
    assert differ(0.0, -0.0, 0, False, "", [], {}, None, [[]], [None])
    assert differ("ab", ["a", "b"], ["ab"], ["a", "bc"], ["ab", "c"], [1, "2"], ["1", 2], [12, ""])
    assert digest(float("nan")) == digest(float("nan"))


def test_order_tells_sequences_apart_and_not_mappings():
    assert digest({"a": 1, "b": {"c": 2, 3: 4}}) == digest({"b": {3: 4, "c": 2}, "a": 1})
    assert digest({"b", "a"}) == digest({"a", "b"}) and digest([1, "a"]) == digest((1, "a"))
    assert differ([1, 2], [2, 1], {"a": 1}, {"a": 2}, {"b": 1}, {"a": 1, "b": 1})
    assert differ(Settings(), Settings(2.0), Settings(names=("b",)), vars(Settings()))


def test_large_arrays_are_known_by_every_byte():
    array = np.arange(5000.0)
    changed = array.copy()
    changed[2500] += 1e-9
    assert differ(array, changed, array.reshape(50, 100), array.astype(np.float32), array[::-1])
    assert digest(array) == digest(np.asfortranarray(array.reshape(50, 100)).ravel())
    assert digest(array.reshape(50, 100)) == digest(np.asfortranarray(array.reshape(50, 100)))
    tensor = torch.arange(5000).to(torch.bfloat16)
    assert differ(tensor, tensor.float(), tensor.roll(1), tensor.view(50, 100), tensor.numpy)
    mixed = np.array([{"a": 1}, "b", None] * 1000, dtype=object)
    other = mixed.copy()
    other[1500] = {"a": 2}
    assert differ(mixed, other)


def test_frames_are_known_by_their_values():
    def frame(**changes):
        n = 2000
        columns = {
            "number": np.arange(n),
            "anything": [{"row": i} for i in range(n)],
            "kind": pd.Categorical(["u", "v"] * (n // 2)),
            "text": pd.array(["s"] * n, dtype="string"),
            "perhaps": pd.array([1, None] * (n // 2), dtype="Int64"),
            "day": pd.date_range("2020", periods=n),
        }
        made = pd.DataFrame(columns)
        for column, value in changes.items():
            made.at[1000, column] = value
        return made

    day = pd.Timestamp("2001-01-01")
    changes = {"number": 5, "anything": {"row": 0}, "kind": "v", "text": "t", "perhaps": 7}
    frames = [frame(**{key: value}) for key, value in (changes | {"day": day}).items()]
    assert differ(frame(), *frames, frame().rename(columns={"number": "n"}), frame()[::-1])
    assert digest(frame()) == digest(frame(number=1000))
    assert differ(frame()["number"], frame()["perhaps"], frame().index)


def test_modules_are_known_by_attributes_and_weights():
    def made(p=0.1, seed=0):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(p))

    assert digest(made()) == digest(made().eval())
    changed = made()
    changed[1].running_mean += 1
    assert differ(made(), made(p=0.2), made(seed=1), changed)


def test_functions_are_known_by_name_code_and_what_they_capture(monkeypatch):
    assert differ(brighten, shifted, np.add, np.subtract, len)
    assert differ(
        shifted(1), shifted(2), functools.partial(brighten), functools.partial(brighten, 1)
    )
    assert digest(shifted(1)) == digest(shifted(1))
    assert digest(functools.partial(shifted, by=1)) == digest(functools.partial(shifted, by=1))
    assert differ(lambda x: x, lambda x: x + 1, lambda x, y=1: x, lambda x, y=2: x)
    before = digest(brighten)
    monkeypatch.setitem(globals(), "FACTOR", 3)
    assert digest(brighten) != before


def test_what_cannot_be_told_is_said(caplog):
    for thing in (
        threading.Lock(),
        (i for i in range(3)),
        sys.stdout,
        torch.eye(2).to_sparse(),
    ):
        with pytest.raises(CannotBeTold, match="cannot be told from another"):
            digest({"deep": [thing]})
    assert try_digest(threading.Lock(), what="features are not cached") is None
    assert "features are not cached: a _thread.lock cannot" in caplog.text
    loop = [1]
    loop.append(loop)
    assert digest(loop) != digest([1, [1]])


def test_a_file_is_known_by_size_and_time(tmp_path):
    file = tmp_path / "a"
    missing = digest(file)
    file.write_text("one")
    first = digest(file)
    os.utime(file, ns=(0, 1))
    assert len({missing, first, digest(file), digest(str(file)), digest(tmp_path)}) == 5


def test_data_in_memory_is_known_by_every_value():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (1200, 3, 8, 8), dtype=np.uint8)
    kinds, other = np.arange(1200) % 2, pictures.copy()
    other[600, 1, 4, 4] ^= 1
    corrected = kinds.copy()
    corrected[600] ^= 1
    sets = [Mine(pictures, kinds), Mine(other, kinds), Mine(pictures, corrected)]
    sets += [Mine(pictures, kinds, transform) for transform in (brighten, shifted(1), shifted(2))]
    assert differ(*sets) and digest(Mine(pictures, kinds)) == digest(sets[0])
    assert differ(*(join(sets[0], one) for one in sets))
    with pytest.raises(CannotBeTold):
        digest(Mine(pictures, kinds, transform=threading.Lock()))
    before = digest(sets[0])
    sets[0].kinds[7] ^= 1  # as a person corrects a label in place
    assert digest(sets[0]) != before


@pytest.fixture
def root(tmp_path):
    for name in ("s1", "s2", "mask"):
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / name / f"{i}.png")
    (tmp_path / "labels.csv").write_text("id,kind:class\n0,a\n1,b\n2,a\n3,b\n")
    return tmp_path


def touched(path):
    """Written again with as many bytes, in place."""
    data, old = path.read_bytes(), path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(old.st_atime_ns, old.st_mtime_ns + 1_000_000_000))


@pytest.mark.parametrize("file", ["s1/2.png", "s2/0.png", "mask/3.png", "labels.csv"])
def test_a_file_that_changes_in_place_is_noticed(root, file):
    def made():
        data = PairedFolder(root)
        return {
            "whole": data,
            "selected": select(data, ["s1"]),
            "joined": join(data, data),
            "narrowed": data.only(["s1"], targets=()),
        }

    before = {name: digest(data) for name, data in made().items()}
    assert before == {name: digest(data) for name, data in made().items()}
    touched(root / file)
    after = {name: digest(data) for name, data in made().items()}
    changed = {name for name in before if before[name] != after[name]}
    read = {"whole", "joined"}  # by all of them, in any case
    if file == "s1/2.png" or file == "labels.csv":
        read |= {"selected", "narrowed"}
    if file == "mask/3.png":
        read |= {"selected"}
    assert changed == read


def test_reading_does_not_change_a_data_set(root):
    data = PairedFolder(root)
    before = digest(data)
    for index in range(len(data)):
        data[index]
    assert digest(data) == before


class Files(PairedDataset):
    """A data set of one's own that does not say which files it reads."""

    def __init__(self, folder):
        self.ids, self.modalities, self.targets, self.present = ["a"], {}, {}, {}
        self.folder = Path(folder)

    def read(self, index):
        raise NotImplementedError


def test_data_that_does_not_name_its_files_is_known_by_all_in_its_folders(root):
    before = digest(Files(root))
    touched(root / "s1" / "2.png")
    assert digest(Files(root)) != before


def test_many_small_files_take_seconds(tmp_path):
    for name in ("s1", "s2"):
        (tmp_path / name).mkdir()
        for i in range(2500):
            (tmp_path / name / f"{i:04}.npy").touch()
        np.save(tmp_path / name / "0000.npy", np.random.rand(1, 4, 4))
    (tmp_path / "modalities.yaml").write_text(
        "\n".join(f"{n}: {{bands: [a], scaling: range, value_range: [0, 1]}}" for n in ("s1", "s2"))
    )
    data = PairedFolder(tmp_path)
    started = time.process_time()
    digest(data)
    assert time.process_time() - started < 1  # 10 s for 100,000 pictures


@pytest.mark.parametrize(
    ("folder", "own"),
    [
        ("home/me/.local/lib/python3.12/site-packages/torchthings", False),
        ("usr/lib/python3/dist-packages/torchthings", False),
        ("home/me/project", True),
    ],
)
def test_installed_packages_are_told_by_name_wherever_they_lie(folder, own, tmp_path, monkeypatch):
    home, name = tmp_path / folder, f"things_{len(folder)}"
    home.mkdir(parents=True)
    monkeypatch.syspath_prepend(home)

    def told(number):
        (home / f"{name}.py").write_text(f"class Thing:\n    def it(self): return {number}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return digest(importlib.import_module(name).Thing)

    assert (told(1) != told(12345)) is own
