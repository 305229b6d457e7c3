"""`decur pack`, as a person types it."""

import pytest
from make_folder import make_folder

from decur.cli import main
from decur.data import PackedPairs, PairedFolder

pytest.importorskip("litdata")


@pytest.fixture
def root(tmp_path):
    ids = [f"{i:02}" for i in range(12)]
    root = make_folder(tmp_path / "src", {"a": ids, "b": ids}, bands={"a": 3})
    (root / "a" / "03.png").write_bytes(b"no picture")
    return root


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([str(a) for a in arguments])
    err = capsys.readouterr().err
    lines = [line for line in err.splitlines() if not line.startswith("INFO")]
    assert stopped.value.code == 2 and len(lines) == 1, err
    return lines[0]


def test_two_folders_are_enough(root, tmp_path, capsys):
    main(
        ["pack", str(root), str(tmp_path / "out"), "--workers", "0", "--verify", "--max_bad", "0.1"]
    )
    out = capsys.readouterr().out
    assert "packed      11 samples" in out and "03.png" in out and "verified    11" in out
    assert PackedPairs(tmp_path / "out").modalities == PairedFolder(root).modalities
    main(["pack", "--verify", str(tmp_path / "out")])
    assert "verified    11" in capsys.readouterr().out


def test_any_data_set_in_parts(tmp_path, capsys):
    common = ["pack", "--data", "SyntheticScenes", "--data.samples", "20", "--data.size", "32"]
    common += ["--out", str(tmp_path / "out"), "--chunk_mb", "0.1", "--workers", "0"]
    main([*common, "--part", "1/2"])
    assert "this part is done" in capsys.readouterr().out
    main([*common, "--part", "2/2", "--compression", "null"])
    assert "packed      20 samples" in capsys.readouterr().out


def test_what_is_wrong_is_one_line(root, tmp_path, capsys):
    out = tmp_path / "out"
    assert "where to" in refused(["pack", root], capsys)
    assert "no such folder" in refused(["pack", tmp_path / "none", out], capsys)
    assert "part" in refused(["pack", root, out, "--part", "3/2"], capsys)
    assert "compression" in refused(["pack", root, out, "--compression", "gz"], capsys)
    assert "1 of 12 samples" in refused(["pack", root, tmp_path / "bad"], capsys)
    assert "no packed data" in refused(["pack", "--verify", root], capsys)
    make_folder(root, {"a": ["04.tif"]}, bands={"a": 3})
    assert "04" in refused(["pack", root, out], capsys)  # two files of one id


def test_packed_already_is_said(root, tmp_path, capsys):
    command = ["pack", str(root), str(tmp_path / "out"), "--workers", "0", "--max_bad", "0.1"]
    main(command)
    assert "packed already" not in capsys.readouterr().out
    main(command)
    assert "packed already; nothing read; delete the folder to pack anew" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made_is_told(root, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    assert "cannot be made" in refused(["pack", "--data.root", root, "--out", out], capsys)
