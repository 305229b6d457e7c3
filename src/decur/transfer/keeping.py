"""What a survey keeps on disk: whole or not there, of files as they were, by one run at a time."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from decur.runs import write_json

log = logging.getLogger(__name__)


def is_kept(file: Path) -> bool:
    """Whether something is kept, and what could not be read then is as it was."""
    if not file.is_file():
        return False
    note = _note(file)
    states = json.loads(note.read_text()) if note.is_file() else {}
    return all(state_of(path) == state for path, state in states.items())


def _note(file: Path) -> Path:
    """Where the states stand of what could not be read when a file was written."""
    return file.with_suffix(".bad.json")


def state_of(path: str) -> list[int]:
    """What tells a file from the one that it was; empty where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return []
    return [found.st_size, found.st_mtime_ns]


@contextmanager
def turn(cache: Path, digests: Iterable[str]) -> Iterator[None]:
    """Wait for other runs that compute the same, as the cells of a comparison do at one time."""
    cache.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        for digest in sorted(digests):  # in one order, so that no two wait for each other
            lock = FileLock(cache / f".{digest}.lock")
            try:
                held.enter_context(lock.acquire(timeout=0))
            except Timeout:
                log.info("another run computes the same features in %s; waiting for it", cache)
                held.enter_context(lock)
        yield


class Arrays:
    """Arrays of a known number of rows, written as they come, under another name until the end.

    Args:
        rows: of each.
        states: of what could not be read, filled meanwhile and written beside each.
    """

    def __init__(self, rows: int, states: Mapping[str, list[int]]) -> None:
        self.rows, self.states = rows, states
        self._open: dict[Path, tuple[Path, np.memmap[Any, Any]]] = {}

    def write(self, file: Path, start: int, values: NDArray[Any]) -> None:
        """Write rows from `start` on."""
        if file not in self._open:
            partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            shape = (self.rows, *values.shape[1:])
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=values.dtype, shape=shape)
            self._open[file] = (partial, array)
        self._open[file][1][start : start + len(values)] = values

    def __enter__(self) -> Arrays:
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        for file, (partial, array) in self._open.items():
            if kind is None:
                array.flush()
                write_note(file, self.states)
                partial.replace(file)
            partial.unlink(missing_ok=True)


def write_note(file: Path, states: Mapping[str, list[int]]) -> None:
    """Note what could not be read for a file, before it is there: it is never kept without."""
    file.unlink(missing_ok=True)
    _note(file).unlink(missing_ok=True)
    if states:
        write_json(_note(file), states)
