"""What would need more memory than the machine has is refused in a line that says what to lower."""

from types import SimpleNamespace

import pytest

from decur import memory
from decur.errors import ConfigError
from decur.modality import Modality

PICTURE = Modality("a", ("x", "y"), scaling="range", size=(100, 100))  # 80,000 bytes as float32


@pytest.mark.parametrize(
    ("there", "size", "copies"), [(800_000, None, 1), (3_200_000, 200, 1), (6_400_000, 200, 2)]
)
def test_a_batch_of_just_the_machines_size_passes(there, size, copies, monkeypatch):
    call = ([PICTURE], 10, size)
    monkeypatch.setattr(memory, "memory_of_machine", lambda: there)
    memory.require_memory_for_batch(*call, copies=copies)
    monkeypatch.setattr(memory, "memory_of_machine", lambda: there - 1)
    with pytest.raises(ConfigError, match=r"10 samples of .* pixels: needs .*lower loader\.batch"):
        memory.require_memory_for_batch(*call, copies=copies)


def test_what_is_not_known_counts_nothing(monkeypatch):
    monkeypatch.setattr(memory, "memory_of_machine", lambda: 1)
    memory.require_memory_for_batch([PICTURE.with_(size=None)], 10, None)
    monkeypatch.setattr(memory, "memory_of_machine", lambda: None)
    memory.require_memory(1e30, what="this", remedy="that")


def test_batches_that_shared_memory_cannot_hold_are_told_of(monkeypatch, tmp_path, caplog):
    there = SimpleNamespace(free=2 * 3 * 10 * 20_000)  # two batches of each process, of bytes
    monkeypatch.setattr(memory, "_SHARED", tmp_path)
    monkeypatch.setattr(memory.shutil, "disk_usage", lambda path: there)
    memory.tell_little_shared_memory([PICTURE, PICTURE.with_(size=None)], 10, workers=3)
    memory.tell_little_shared_memory([PICTURE], 1000, workers=0)
    assert not caplog.records
    there.free -= 1
    memory.tell_little_shared_memory([PICTURE], 10, workers=3)
    (said,) = caplog.messages
    assert "lower loader.workers" in said and "--shm-size" in said and "\n" not in said
