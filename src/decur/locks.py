"""Folders that one command owns while it writes there, and that may be lost meanwhile."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from decur.errors import ConfigError, DecurError, RunLostError
from decur.signals import end_process, is_command

log = logging.getLogger(__name__)

LOCK = ".lock"  # file in a folder that a command owns; deleted when it ends
# What file systems answer that have no locks, and those that have no room for an empty file.
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSPC, errno.EDQUOT)
# What a file system answers that takes nothing more, or is gone.
_GONE = tuple(
    getattr(errno, name)
    for name in ("EROFS", "EIO", "ESTALE", "ENODEV", "ENXIO", "ENOTCONN")
    if hasattr(errno, name)
)
_LOOK_EVERY = 1.0  # seconds between two looks whether a folder is still there
_GRACE = 5.0  # seconds that a command has to end by itself once its folder is lost
# The variables by which launchers number the processes of one run.
_RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


@dataclass
class _Owned:
    """A folder that this process writes to.

    Args:
        path: of the folder.
        thread: that writes to it.
        identity: device and inode of the folder.
        ended: set when the thread is done.
    """

    path: Path
    thread: int
    identity: tuple[int, int]
    ended: threading.Event = field(default_factory=threading.Event)

    def loss(self) -> str | None:
        """Return why nothing can be written to the folder any more; None while it can be."""
        try:
            status = self.path.stat()
        except OSError as error:
            return error.strerror or str(error)
        if (status.st_dev, status.st_ino) != self.identity:
            return "another folder is in its place"
        if not os.access(self.path, os.W_OK):
            return "it has become read-only"
        lock = self.path / LOCK
        try:  # only a write shows that a file system has stopped after an error
            os.utime(lock if lock.exists() else self.path)
        except OSError as error:
            return error.strerror if error.errno in _GONE else None
        return None

    def refuse_loss(self) -> None:
        """Raise `RunLostError` where the folder is lost."""
        if (reason := self.loss()) is not None:
            raise RunLostError(_lost_line(self.path, reason))


_owned: dict[Path, _Owned] = {}


@contextmanager
def holding(folder: Path, key: str = "--run") -> Iterator[bool]:
    """Own a folder while the block writes there; make it where it is not there.

    A second owner is refused at once, on this computer and on others that share the file system.
    The system gives the lock of a dead process back. Of the processes of one run only the first
    owns the folder. A block within such a block, of the same folder and thread, is let in.

    Args:
        folder: that is written to.
        key: the option that names it.

    Yields:
        Whether this process owns the folder; False in all but the first process of a run.

    Raises:
        ConfigError: if another process or thread owns the folder, which the message names, or if
            it cannot be made or written to.
        RunLostError: in place of whatever the block raises, if the folder was deleted, unmounted
            or made read-only meanwhile.
    """
    place = Path(os.path.abspath(folder))
    mine = _owned.get(place)
    if not is_first_process() or (mine is not None and mine.thread == threading.get_ident()):
        yield mine is not None
        return
    if mine is not None:
        raise ConfigError(f"{key} {folder}: another thread of this process is writing there")
    with _made(folder, key), _locked(folder, key), watched(folder):
        yield True


@contextmanager
def taking_turns(path: Path, waiting: str = "") -> Iterator[bool]:
    """Hold a lock while the block runs; wait as long as another process holds it.

    Args:
        path: of the lock's file.
        waiting: the line for the log where another one holds it.

    Yields:
        Whether the lock is held; False where the file system has no locks.
    """
    lock = FileLock(path)
    with ExitStack() as held:
        try:
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                if waiting:
                    log.info(waiting)
                held.enter_context(lock)
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
        yield lock.is_locked


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """Tell in one line if a folder is lost while the block writes to it.

    A command that does not end by itself then is ended.

    Args:
        folder: that is there.

    Raises:
        RunLostError: in place of whatever the block raises, if the folder was deleted, unmounted
            or made read-only meanwhile.
    """
    place = Path(os.path.abspath(folder))
    status = place.stat()
    owned = _Owned(place, threading.get_ident(), (status.st_dev, status.st_ino))
    _owned[place] = owned
    threading.Thread(target=_watch, args=(owned,), daemon=True).start()
    try:
        yield
        owned.refuse_loss()
    except RunLostError:
        raise
    except (OSError, ValueError, RuntimeError, DecurError) as error:
        if (reason := owned.loss()) is not None:
            raise RunLostError(_lost_line(place, reason)) from error
        raise
    finally:
        owned.ended.set()
        _owned.pop(place, None)  # another thread may have packed into the same folder


def refuse_lost(path: Path) -> None:
    """Refuse to write into a folder that this process has lost while it was writing there.

    To make the folder of a file anew would leave half a run.

    Args:
        path: of the file.

    Raises:
        RunLostError: naming the folder and what became of it.
    """
    whole = Path(os.path.abspath(path))
    for place, owned in list(_owned.items()):
        if place in whole.parents:
            owned.refuse_loss()


def is_first_process() -> bool:
    """Return whether this is the first process of a run, or the only one."""
    ranks = [os.environ[name] for name in _RANKS if name in os.environ]
    return all(rank.strip() in ("", "0") for rank in ranks)


@contextmanager
def _made(folder: Path, key: str) -> Iterator[None]:
    """Make a folder; delete it again where nothing has come into it."""
    there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"{key} {folder}: is a file, not a folder") from error
    except OSError as error:
        raise ConfigError(
            f"{key} {folder}: cannot be made ({error.strerror}); choose another"
        ) from error
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):  # something has come into it
                folder.rmdir()


@contextmanager
def _locked(folder: Path, key: str) -> Iterator[None]:
    """Hold the lock of a folder, and say in its file who does."""
    path = folder / LOCK
    lock = FileLock(path, timeout=0, thread_local=False)
    with ExitStack() as held:
        try:
            held.enter_context(lock)
            with suppress(OSError):  # a full disk: the lock holds, its owner stays unnamed
                path.write_text(json.dumps(_who()))
        except Timeout:
            raise ConfigError(
                f"{key} {folder}: {_holder(path)} is writing there; wait until it ends, or choose "
                "another folder"
            ) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise ConfigError(
                    f"{key} {folder}: cannot be written ({error.strerror}); choose another folder"
                ) from error
            log.warning(
                "%s %s: cannot be locked there (%s); see that no other command writes to it",
                key,
                folder,
                error.strerror,
            )
        try:
            yield
        finally:
            # Before it is released: whoever has opened the file meanwhile sees that it is gone.
            with suppress(OSError):
                path.unlink()


def _who() -> dict[str, str | int]:
    name, *words = sys.argv or ["python"]
    command = [Path(name).stem.replace("__main__", "decur"), *words[:1]]
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {
        "host": socket.gethostname(),
        "process": os.getpid(),
        "command": " ".join(command),
        "since": since,
    }


def _holder(path: Path) -> str:
    """Return in words who holds a lock."""
    try:
        who = json.loads(path.read_text())
        return (
            f"{who['command']!r} (process {who['process']} on {who['host']}, since {who['since']})"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _watch(owned: _Owned) -> None:
    """Look whether a folder is still there, and end a command that does not end by itself then."""
    while not owned.ended.wait(_LOOK_EVERY):
        if owned.loss() is None:
            continue
        if owned.ended.wait(_GRACE) or not is_command():
            return
        if (reason := owned.loss()) is not None:  # it may be there again
            print(f"error: {_lost_line(owned.path, reason)}", file=sys.stderr, flush=True)
            end_process(RunLostError.exit_code)


def _lost_line(folder: Path, reason: str) -> str:
    return (
        f"{folder}: the folder was lost while it was written to ({reason}); nothing more is saved; "
        "once it is back, the same command goes on from what it holds"
    )
