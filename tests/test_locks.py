"""A folder has one owner, and an owner that loses its folder says so."""

import errno
import os
import shutil
import subprocess
import sys
import threading

import pytest

from decur.errors import ConfigError, RunLostError, WriteError
from decur.locks import LOCK, holding, taking_turns
from decur.runs import RunFolder, write_text

_HOLD = """
import sys
from pathlib import Path
from decur.locks import holding
with holding(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_a_dead_one_blocks_nobody(tmp_path):
    command = [sys.executable, "-c", _HOLD, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=rf"process {other.pid} on {os.uname().nodename}"):
        RunFolder(tmp_path).owned().__enter__()
    other.kill()
    other.communicate()
    assert (tmp_path / LOCK).exists()
    with RunFolder(tmp_path).owned():
        pass
    assert not list(tmp_path.iterdir())


def test_an_owner_may_own_again_and_another_thread_may_not(tmp_path):
    refused = []

    def own():
        try:
            with holding(tmp_path):
                pass
        except ConfigError as error:
            refused.append(str(error))

    with holding(tmp_path):
        with holding(tmp_path / "."):
            pass
        thread = threading.Thread(target=own)
        thread.start()
        thread.join()
    assert len(refused) == 1 and "another thread" in refused[0]
    own()
    assert len(refused) == 1


def test_of_the_processes_of_a_run_only_the_first_owns_its_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with holding(tmp_path / "new") as is_owner:
        assert not is_owner and not (tmp_path / "new").exists()


def test_a_folder_in_which_nothing_was_written_is_not_left(tmp_path):
    with holding(tmp_path / "new"):
        assert (tmp_path / "new" / LOCK).is_file()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("remade", [False, True])
def test_a_lost_folder_is_not_made_anew(tmp_path, remade):
    folder = tmp_path / "run"
    with pytest.raises(RunLostError, match="run: the folder was lost"), holding(folder):
        shutil.rmtree(folder)
        if remade:
            folder.mkdir()
        write_text(folder / "sub" / "metrics.csv", "epoch")
    assert not (folder / "sub").exists()


def test_errors_in_a_lost_folder_are_told_as_its_loss(tmp_path):
    with pytest.raises(RunLostError) as told, holding(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        raise WriteError("no such file")
    assert told.value.exit_code == 1


@pytest.mark.parametrize(("number", "lost"), [(errno.EROFS, True), (errno.ENOSPC, False)])
def test_a_file_system_that_takes_nothing_more_is_lost_and_a_full_one_is_not(
    tmp_path, monkeypatch, number, lost
):
    """After an error Linux answers that a folder may be written to, and takes nothing."""

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "utime", refuse)
    kind = RunLostError if lost else WriteError
    with pytest.raises(kind, match="Read-only" if lost else "cannot"), holding(tmp_path):
        raise WriteError("metrics.csv: cannot be written")


def test_leftovers_of_dead_commands_are_deleted(tmp_path):
    left = [tmp_path / ".report.html.12.tmp", tmp_path / "checkpoints" / ".step-1.ckpt.12.tmp"]
    kept = tmp_path / "checkpoints" / "step-1.ckpt"
    kept.parent.mkdir()
    for path in (*left, kept):
        path.touch()
    with RunFolder(tmp_path).owned():
        assert not any(path.exists() for path in left)
    assert kept.exists()


def test_on_a_file_system_without_locks_nobody_waits(tmp_path, monkeypatch):
    path = tmp_path / "a.lock"
    with taking_turns(path) as held:
        assert held

    def without(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", without)
    with taking_turns(path) as held:
        assert not held
    monkeypatch.setattr("filelock.FileLock._acquire", lambda self: without_right(path))
    with pytest.raises(PermissionError), taking_turns(path):
        pass


def without_right(path):
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
