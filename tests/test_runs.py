"""Run folders, and files that are written whole or not at all."""

import errno
import logging
import os
import resource
import shutil

import pytest
import torch

from decur.errors import DataError, WriteError
from decur.runs import RunFolder, atomic, plain_writing, write_text


def test_all_checkpoints_damaged_is_an_error(tmp_path):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    (folder.checkpoints / "step-000000001.ckpt").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="--overwrite"):
        folder.newest_checkpoint()


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub" / "file"
    with atomic(path) as temporary:
        temporary.write_text("old")
    with pytest.raises(RuntimeError), atomic(path) as temporary:
        temporary.write_text("ne")
        raise RuntimeError
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]


def test_text_replaces_what_was_there(tmp_path):
    path = tmp_path / "sub" / "é.txt"
    write_text(path, "longer than what follows")
    assert write_text(path, "ü\n") == path
    assert path.read_bytes() == "ü\n".encode() and list(path.parent.iterdir()) == [path]


def test_a_flipped_bit_in_a_checkpoint_is_found(tmp_path, caplog):
    folder = RunFolder(tmp_path)
    folder.checkpoints.mkdir()
    for step in (1, 2):
        torch.save({"w": torch.ones(1000)}, folder.checkpoints / f"step-{step:09d}.ckpt")
    older, newer = sorted(folder.checkpoints.iterdir())
    data = bytearray(newer.read_bytes())
    data[data.index(torch.ones(4).numpy().tobytes()) + 803] ^= 0x40
    newer.write_bytes(data)
    assert torch.load(newer, weights_only=True)["w"].sum() != 1000  # torch does not mind
    with caplog.at_level(logging.WARNING):
        assert folder.newest_checkpoint() == older
    assert f"{newer} is damaged" in caplog.text


def test_a_full_disk_says_how_much_is_missing(tmp_path, monkeypatch):
    def full(number):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2_000_000))
    monkeypatch.setattr(os, "fsync", full)
    message = r"report.html: cannot be written \(No space left.*5 MB are needed.*3 MB too few"
    with pytest.raises(WriteError, match=message), atomic(tmp_path / "report.html", 5_000_000):
        next(tmp_path.iterdir(), None)
        (tmp_path / f".report.html.{os.getpid()}.tmp").write_text("page")
    assert not list(tmp_path.iterdir())


def test_a_limit_of_the_size_of_files_is_told(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(WriteError, match="ulimit -f"):
            write_text(tmp_path / "a", "x" * 5000)
        path = tmp_path / "b"
        with pytest.raises(WriteError, match="ulimit -f"), plain_writing(path):
            path.write_text("x" * 5000)
        with pytest.raises(WriteError, match="c: cannot be written"), atomic(tmp_path / "c") as c:
            torch.save({"w": torch.ones(1000)}, c)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(KeyError), plain_writing(tmp_path):
        {}["nothing"]
