"""The temporary folder of a command, which holds what libraries leave behind and goes with it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PREFIX = "decur-temporary-"
_LOCK = ".alive"  # file in such a folder, locked as long as its process lives


@contextmanager
def temporary_folder() -> Iterator[None]:
    """Let temporary files of this process and of its reading processes lie in one folder.

    Processes that are killed leave theirs behind, such as the sockets by which samples are handed
    over. The folder is deleted after the block; those of commands that were killed are deleted
    before it. Where no folder can be made, and on Windows, everything stays as it was.
    """
    if sys.platform == "win32":  # which hands samples over without sockets
        yield
        return
    before = tempfile.tempdir
    compiled = _keep_compiled()
    with suppress(OSError):
        _delete_left_behind(Path(tempfile.gettempdir()))
    made = _made()
    if made is None:
        yield
        return
    folder, lock = made
    tempfile.tempdir = str(folder)
    try:
        yield
    finally:
        tempfile.tempdir = before
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)
        with suppress(OSError):  # readers of a killed command live some seconds longer than it
            _delete_left_behind(folder.parent)
        with suppress(OSError):  # torch makes it when it is imported, and mostly leaves it empty
            compiled.rmdir()


def _made() -> tuple[Path, int] | None:
    """Return a new folder with the open file that locks it; None where none can be made."""
    for _ in range(3):  # another command may take it for one that was left behind
        try:
            folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        except OSError:
            return None
        with suppress(OSError):
            lock = _locked(folder, os.O_CREAT)
            if (folder / _LOCK).exists():
                return folder, lock
            os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def _locked(folder: Path, how: int = 0) -> int:
    """Return the open file that locks a folder.

    Processes that are forked share the lock, so that a folder is alive as long as one of them is.

    Args:
        folder: such a folder.
        how: flags with which the file is opened.

    Raises:
        OSError: if another process holds the lock, or it cannot be had.
    """
    import fcntl

    lock = os.open(folder / _LOCK, os.O_RDWR | how, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _delete_left_behind(home: Path) -> None:
    """Delete the folders of commands of this user that were killed."""
    for entry in os.scandir(home):
        own = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
        if not own or entry.stat(follow_symlinks=False).st_uid != os.getuid():
            continue
        with suppress(OSError):  # it is alive, or has just gone
            lock = _locked(Path(entry.path))
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(lock)


def _keep_compiled() -> Path:
    """Return the folder of what torch compiles, which outlives a command.

    torch would choose one in the temporary folder when it is imported, and stay with it.
    """
    key = "TORCHINDUCTOR_CACHE_DIR"
    if key not in os.environ:
        os.environ[key] = str(Path(tempfile.gettempdir()) / f"torchinductor_{os.getuid()}")
    return Path(os.environ[key])
