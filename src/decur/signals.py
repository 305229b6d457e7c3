"""Signals: which of them are taken, which are ignored, and how a command ends at once."""

from __future__ import annotations

import errno
import multiprocessing
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import FrameType
from typing import Any, NoReturn

HANGUP = tuple(n for n in signal.Signals if n.name == "SIGHUP")  # Windows has none
STOPPING = (signal.SIGTERM, signal.SIGINT, *HANGUP)  # what tells a command to stop
_PATIENCE = 5.0  # seconds that a killed process may take to be gone
_AGAIN = 0.02  # seconds after which a signal comes again that was ignored
_ONCE = 1.0  # seconds within which the same order to stop may come from two sides
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


def stop_at_once(number: int = signal.SIGINT) -> NoReturn:
    """Stop unsaved, as Ctrl-C asks for when it comes again.

    Args:
        number: the signal's.

    Raises:
        KeyboardInterrupt: where the process is no command; a command ends with exit code 130, or
            with that of another signal.
    """
    if not is_command():
        raise KeyboardInterrupt
    # An exception would have libraries tidy up for a while, and change the exit code.
    os.write(2, f"error: {told_of(number)}\n".encode())  # a signal may come within another print
    end_process(128 + number)


def told_of(number: int) -> str:
    """Return in words that a signal has stopped a command."""
    if number == signal.SIGINT:
        return "interrupted"
    return f"stopped by {signal.Signals(number).name}"


@contextmanager
def interruptible() -> Iterator[list[int]]:
    """Let Ctrl-C, SIGTERM and SIGHUP interrupt the block; again, they end the process at once.

    Each is a `KeyboardInterrupt`, so that the block tidies up: SIGTERM would end the process where
    it is, with reading processes and temporary files left behind. Where Python ignores exceptions,
    in destructors and while it forks, it is raised again afterwards.

    Yields:
        A list that gets the number of the signal.
    """
    asked: list[int] = []
    since, ignored = 0.0, False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal since, ignored
        if not asked:
            asked.append(number)
            since = time.monotonic()
        elif ignored:
            ignored = False
        # `timeout` sends SIGTERM twice at once, to the process and to its group
        elif number == signal.SIGINT or time.monotonic() - since > _ONCE:
            stop_at_once(number)
        else:
            return
        raise KeyboardInterrupt

    def on_unraisable(told: Any) -> None:
        nonlocal ignored
        if not asked:  # else destructors complain of what was interrupted
            before_unraisable(told)
        elif isinstance(told.exc_value, KeyboardInterrupt):
            ignored = True
            threading.Timer(_AGAIN, os.kill, (os.getpid(), asked[0])).start()

    taken = [n for n in STOPPING if may_be_taken(n) and signal.getsignal(n) != signal.SIG_IGN]
    before: dict[int, Any] = {number: signal.signal(number, on_signal) for number in taken}
    before_unraisable, sys.unraisablehook = sys.unraisablehook, on_unraisable
    try:
        yield asked
    finally:
        sys.unraisablehook = before_unraisable
        for number, handler in before.items():
            signal.signal(number, handler)


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
