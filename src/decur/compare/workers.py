"""Cells on devices: one process for each device, a log file for each cell."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock

from decur.compare.plan import Cell
from decur.errors import DecurError, Interrupted
from decur.pretrain.command_pretrain import main as pretrain
from decur.runs import RunFolder, atomic, write_json
from decur.transfer.command_transfer import main as transfer

DONE = "cell.json"  # in a cell's folder once it is finished
LOG = "log.txt"  # what the command printed
LOCK = "cell.lock"  # held by the process that works on the cell


def is_done(cell: Cell) -> bool:
    """Whether an earlier comparison finished the cell."""
    return (cell.folder / DONE).is_file()


def seconds(cell: Cell) -> float | None:
    """How long a finished cell took, without what was done before an interruption."""
    if not is_done(cell):
        return None
    return float(json.loads((cell.folder / DONE).read_text())["seconds"])


class Workers:
    """Runs cells, as many at a time as there are devices.

    Every device has a process of its own, which works off one cell after another: the libraries
    are imported once. A process that dies takes its cell with it and is replaced.

    Args:
        devices: names of GPUs as `CUDA_VISIBLE_DEVICES` takes them; "" for the CPU.
    """

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)
        self._pools: dict[int, ProcessPoolExecutor] = {}  # by place in `devices`

    def run(
        self,
        cells: Sequence[Cell],
        started: Callable[[Cell], None],
        ended: Callable[[Cell, str | None], None],
    ) -> dict[Path, str]:
        """Run cells in order, each once what it needs is there; a failure stops no other.

        Args:
            cells: those that are not done; what they need is among them, before them, or done.
            started: told of each cell.
            ended: told of each cell and why it failed, None if it did not.

        Returns:
            `{folder: reason}` of the cells that failed or lack what they need.

        Raises:
            Interrupted: if this process is told to stop, once the running cells have ended.
        """
        waiting = {cell.folder: cell for cell in cells}
        running: dict[Future[str | None], tuple[Cell, int]] = {}
        failed: dict[Path, str] = {}
        free = list(range(len(self.devices)))
        handlers = {n: signal.signal(n, _stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            while waiting or running:
                for cell in list(waiting.values()):
                    if lost := [folder for folder in cell.needs if folder in failed]:
                        failed[cell.folder] = f"its pretraining failed: {failed[lost[0]]}"
                        ended(waiting.pop(cell.folder), failed[cell.folder])
                    elif free and not any(
                        folder in waiting or any(folder == c.folder for c, _ in running.values())
                        for folder in cell.needs
                    ):
                        place = free.pop(0)
                        started(waiting.pop(cell.folder))
                        running[self._submit(cell, place)] = (cell, place)
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cell, place = running.pop(future)
                    free.append(place)
                    reason = self._reason(future, place)
                    if reason is not None:
                        failed[cell.folder] = reason
                    ended(cell, reason)
        except Interrupted:
            for number in handlers:
                signal.signal(number, signal.SIG_IGN)  # once is enough
            for process in multiprocessing.active_children():
                process.terminate()  # each cell saves its state
            raise
        finally:
            for pool in self._pools.values():
                pool.shutdown(wait=True, cancel_futures=True)
            self._pools = {}
            for number, handler in handlers.items():
                signal.signal(number, handler)
        return failed

    def _submit(self, cell: Cell, place: int) -> Future[str | None]:
        device = self.devices[place]
        if place not in self._pools:
            self._pools[place] = ProcessPoolExecutor(
                1, multiprocessing.get_context("spawn"), _begin, (device,)
            )
        return self._pools[place].submit(_work, cell, device)

    def _reason(self, future: Future[str | None], place: int) -> str | None:
        try:
            return future.result()
        except BrokenProcessPool:
            self._pools.pop(place).shutdown(wait=False)
            return "its process was killed, perhaps for want of memory"


def _stop(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


def _begin(device: str) -> None:
    """Set a worker up, before torch looks for devices."""
    os.environ["CUDA_VISIBLE_DEVICES"] = device
    # A spawned process spawns in its turn: readers of data would import everything anew, each time.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal's Ctrl-C; the parent passes it on
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a worker
    parent.join()
    while True:  # once for the cell, which saves its state, and once more for the idle worker
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


def _work(cell: Cell, device: str) -> str | None:
    """Run a cell in a worker; returns why it failed, None if it did not.

    Another comparison that shares the cell may be at it: then this one waits, and does what is
    left, mostly nothing.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(cell.folder / LOCK):
        return None if is_done(cell) else _run(cell, device)


def _run(cell: Cell, device: str) -> str | None:
    begun = time.monotonic()
    config = RunFolder(cell.folder).config
    with atomic(config) as temporary:
        temporary.write_text(cell.config)
    with _signals_kept(), _output_to(cell.folder / LOG):
        try:
            _COMMANDS[cell.command](["--config", str(config)])
        except DecurError as error:
            reason = " ".join(str(error).split())
            print(f"error: {reason}", file=sys.stderr)
            return reason
        except (Interrupted, SystemExit):  # Lightning exits when it is told to stop
            print("stopped: this process was told to", file=sys.stderr)
            return "its process was told to stop"
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(str(error).split())[:300]
            return f"{type(error).__name__}: {reason} (see {cell.folder / LOG})"
    about = {"label": cell.label, "seconds": time.monotonic() - begun, "device": device or "cpu"}
    write_json(cell.folder / DONE, about)
    return None


_COMMANDS: dict[str, Callable[[list[str]], Any]] = {"pretrain": pretrain, "transfer": transfer}


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Take back the signals that a command has taken over; one that failed may still hold them."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Send all that this process and its children print to the end of a file."""
    with path.open("a") as file:
        kept = [os.dup(number) for number in (1, 2)]
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            yield
        finally:
            for stream, number, old in zip((sys.stdout, sys.stderr), (1, 2), kept, strict=True):
                stream.flush()
                os.dup2(old, number)
                os.close(old)
