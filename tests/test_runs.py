"""Run folders, and files that are written whole or not at all."""

import pytest

from decur.errors import DataError
from decur.runs import RunFolder, atomic, write_text


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
