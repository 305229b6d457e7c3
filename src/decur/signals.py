"""Signals: which of them are taken, which are ignored, and how a command ends at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn

HANGUP = tuple(n for n in signal.Signals if n.name == "SIGHUP")  # Windows has none
STOPPING = (signal.SIGTERM, signal.SIGINT, *HANGUP)  # what tells a command to stop
_PATIENCE = 5.0  # seconds that a killed process may take to be gone
_command = threading.Event()  # set while this process is a command, and nobody's notebook


@contextmanager
def running_command() -> Iterator[None]:
    """Let this process count as a command, which may be ended as a whole, during the block.

    Processes that it has started and that are still there are killed at the end.
    """
    _command.set()
    try:
        yield
    finally:
        _command.clear()
        _kill_children()


def _kill_children() -> None:
    """Kill the processes that this one has started, and wait until they are gone.

    Reading processes are told to end by what an error still holds, and ignore SIGTERM: Python would
    wait for them forever. torch would call their deaths errors, by a handler of signals.
    """
    children = multiprocessing.active_children()
    number = next((n for n in signal.Signals if n.name == "SIGCHLD"), None)  # Windows has none
    taken = bool(children) and number is not None and may_be_taken(number)
    before = signal.signal(number, signal.SIG_DFL) if taken and number is not None else None
    for child in children:
        child.kill()
    for child in children:
        child.join(_PATIENCE)
    if before is not None and number is not None:
        signal.signal(number, before)


def end_process(code: int) -> NoReturn:
    """End this process at once, from whichever thread, and those that it has started with it."""
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code)


@cache
def refuse_pipes() -> None:
    """Let a command read no pipe in place of a file: it would wait forever for who writes there.

    Python asks before each file that it opens; that cannot be taken back, and holds for commands.
    """

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not is_command() or isinstance(arguments[0], int):
            return
        path, _, flags = arguments
        if flags & (os.O_WRONLY | os.O_RDWR):
            return
        try:
            is_pipe = stat.S_ISFIFO(os.stat(path).st_mode)
        except (OSError, ValueError, TypeError):  # opening it says why
            return
        if is_pipe:
            raise OSError(errno.EINVAL, "it is a pipe, not a file", os.fspath(path))

    sys.addaudithook(look)


def is_command() -> bool:
    """Return whether this process runs a command of a terminal, and nothing else."""
    return _command.is_set()


def stop_at_once() -> NoReturn:
    """Stop unsaved, as Ctrl-C asks for when it comes again.

    Raises:
        KeyboardInterrupt: where the process is no command; a command ends with exit code 130.
    """
    if not is_command():
        raise KeyboardInterrupt
    # An exception would have libraries tidy up for a while, and change the exit code.
    os.write(2, b"error: interrupted\n")  # the signal may have come within another print
    end_process(128 + signal.SIGINT)


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Let Ctrl-C interrupt the block, and end the process at once when it comes again.

    Yields:
        An event that is set once it has come.
    """
    asked = threading.Event()
    if not may_be_taken(signal.SIGINT) or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield asked
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            stop_at_once()
        asked.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before)


def may_be_taken(number: int) -> bool:
    """Return whether this thread may take a signal: the main one, and not what `nohup` ignores."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return number not in HANGUP or signal.getsignal(number) != signal.SIG_IGN


def ignore_signals(worker: int) -> None:
    """Ignore signals in a worker process: a scheduler or Ctrl-C signals the whole group.

    Nor does it print what its threads raise when the process that it reads for is gone.
    """
    sys.excepthook = lambda *_: None
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
