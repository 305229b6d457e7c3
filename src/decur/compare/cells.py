"""A cell of a comparison: one command with its configuration, how it is run, what it leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from decur.errors import DecurError, Interrupted, reading
from decur.locks import taking_turns
from decur.runs import RunFolder, write_json, write_text
from decur.signals import STOPPING, may_be_taken

DONE = "cell.json"  # in a cell's folder once it is finished
LOG = "log.txt"  # what the command printed
LOCK = "cell.lock"  # held by the process that works on the cell

QUEUED_AGAIN = -1  # exit code of submitit once SLURM has a job queued again


@dataclass(frozen=True)
class Cell:
    """One command of a comparison.

    Args:
        command: of `decur`.
        folder: the run's; its name ends in a digest of the configuration.
        config: the whole configuration, YAML.
        needs: folders of the pretraining runs whose encoders it takes.
        method: its name.
        backbone: its name.
        seed: its seed.
        task: the task's name; empty for pretraining.
        modalities: the sensors; empty for all.
        label_fraction: share of the labels.
        transductive: whether its pretraining has seen the pictures that it tests on.
    """

    command: Literal["pretrain", "transfer"]
    folder: Path
    config: str
    needs: tuple[Path, ...]
    method: str
    backbone: str
    seed: int
    task: str = ""
    modalities: tuple[str, ...] = ()
    label_fraction: float = 1.0
    transductive: bool = False

    @property
    def label(self) -> str:
        """A line that names the cell for people."""
        parts = [self.task or "pretraining", self.method, self.backbone, "+".join(self.modalities)]
        if self.task:
            parts.append(f"{100 * self.label_fraction:g} %")
        return ", ".join([*filter(None, parts), f"seed {self.seed}"])


def is_done(cell: Cell) -> bool:
    """Return whether the cell has been finished, by this comparison or an earlier one."""
    return (cell.folder / DONE).is_file()


def seconds(cell: Cell) -> float | None:
    """Return how long a finished cell took after its last interruption; None for another cell."""
    if not is_done(cell):
        return None
    with reading(cell.folder / DONE, "delete the folder, and it is done again"):
        return float(json.loads((cell.folder / DONE).read_text())["seconds"])


def read_scores(cell: Cell) -> dict[str, float | None]:
    """Return the metrics of a finished transfer; None for one undefined on its test part."""
    return {name: found["value"] for name, found in _metrics(cell).items()}


def read_floors(cell: Cell) -> dict[str, float | None]:
    """Return what a constant guess gives on the test part of a finished transfer, by metric.

    Cells of version 0.1 have none.
    """
    return {name: found.get("floor") for name, found in _metrics(cell).items()}


def read_warnings(cell: Cell) -> list[str]:
    """Return what is doubtful of a finished transfer's scores; cells of version 0.1 say nothing."""
    return [str(line) for line in _results(cell).get("warnings", [])]


def _metrics(cell: Cell) -> dict[str, dict[str, Any]]:
    metrics: dict[str, dict[str, Any]] = _results(cell)["metrics"]
    return metrics


def _results(cell: Cell) -> dict[str, Any]:
    path = cell.folder / "results.json"
    with reading(path, "delete its folder, and it is done again"):
        results: dict[str, Any] = json.loads(path.read_text())
        if not all("value" in found for found in results["metrics"].values()):
            raise KeyError("value")
    return results


def run_cell(cell: Cell) -> str | None:
    """Run a cell in this process, unless it is done.

    Another comparison that shares the cell may be at it: then this one waits, and does what is
    left, mostly nothing.

    Returns:
        Why it failed; None if it did not.

    Raises:
        Interrupted: if the process was told to stop.
    """
    cell.folder.mkdir(parents=True, exist_ok=True)
    with taking_turns(cell.folder / LOCK):
        return None if is_done(cell) else _run_command(cell)


def _run_command(cell: Cell) -> str | None:
    begun = time.monotonic()
    config = RunFolder(cell.folder).config
    write_text(config, cell.config)
    with _signals_given_back(), _output_to(cell.folder / LOG):
        try:
            _command(cell.command)(["--config", str(config)])
        except DecurError as error:
            reason = " ".join(str(error).split())
            print(f"error: {reason}", file=sys.stderr)
            return reason
        except Interrupted:
            print("stopped: this process was told to", file=sys.stderr)
            raise
        except SystemExit as error:  # Lightning exits when it is told to stop
            if error.code == QUEUED_AGAIN:
                raise
            print("stopped: this process was told to", file=sys.stderr)
            raise Interrupted(signal.SIGTERM) from error
        except Exception as error:
            traceback.print_exc()
            reason = " ".join(str(error).split())[:300]
            return f"{type(error).__name__}: {reason} (see {cell.folder / LOG})"
    device = os.environ.get("CUDA_VISIBLE_DEVICES") or "cpu"
    about = {"label": cell.label, "seconds": time.monotonic() - begun, "device": device}
    write_json(cell.folder / DONE, about)
    return None


def _command(name: str) -> Callable[[list[str]], object]:
    """Return the main function of `decur pretrain` or `decur transfer`."""
    if name == "pretrain":
        from decur.pretrain.command_pretrain import main as pretrain

        return pretrain
    from decur.transfer.command_transfer import main as transfer

    return transfer


@contextmanager
def _signals_given_back() -> Iterator[None]:
    """Restore the handlers of signals afterwards: a command that failed may have left its own."""
    numbers = [n for n in STOPPING if may_be_taken(n)]
    kept = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


@contextmanager
def _output_to(path: Path) -> Iterator[None]:
    """Append all that this process and its children print to a file."""
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
