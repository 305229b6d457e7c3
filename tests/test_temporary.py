"""What libraries leave in the temporary folder goes with the command, or with the next one."""

import os
import subprocess
import sys
import tempfile

import pytest

from decur.cli import main
from decur.temporary import temporary_folder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="temporary folders as they are")

_KILLED = """
import os, signal, tempfile
from decur.temporary import temporary_folder
with temporary_folder():
    open(tempfile.mkdtemp() + "/socket", "w")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Return a folder that is the system's temporary one for this test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "compiled"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


def test_what_a_command_leaves_goes_with_it(home, monkeypatch, capsys):
    (home / "compiled").mkdir()
    found = []

    def leaves(arguments):
        found.append(tempfile.mkdtemp(prefix="pymp-"))
        assert os.path.dirname(found[0]) != str(home)

    monkeypatch.setattr("decur.command_recipes.main", leaves)
    main(["recipes"])
    assert found and not list(home.iterdir())
    assert tempfile.gettempdir() == str(home)


def test_the_next_command_deletes_what_a_killed_one_has_left_and_nothing_else(home):
    others = home / "decur-run"
    others.mkdir()
    (home / "decur-temporary-linked").symlink_to(others)
    with temporary_folder():
        alive = tempfile.gettempdir()
        assert subprocess.run([sys.executable, "-c", _KILLED]).returncode == -9
        left = {path.name for path in home.iterdir()} - {others.name, os.path.basename(alive)}
        assert len(left) == 2  # of the killed one, and the link
        main(["recipes"])
        assert os.path.isdir(alive) and others.is_dir()
    assert {path.name for path in home.iterdir()} == {"decur-run", "decur-temporary-linked"}


def test_without_a_place_for_temporary_files_a_command_runs(home, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkdtemp", full)
    with temporary_folder():
        assert tempfile.gettempdir() == str(home)
