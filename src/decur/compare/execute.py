"""The cells of a comparison as jobs of submitit: processes of this machine, or jobs of SLURM.

A job works off the cells of one method with one backbone at one seed: its pretraining, then its
transfers. It tells the comparison in a file of events which cell it has started and how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock
from submitit import AutoExecutor
from submitit import Job as Submitted
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError

from decur.compare.cells import Cell, run_cell
from decur.compare.settings import ClusterSettings
from decur.errors import ConfigError, Interrupted
from decur.locks import refuse_lost, taking_turns
from decur.signals import STOPPING, may_be_taken, running_command, stop_at_once
from decur.temporary import temporary_folder

KILLED = "its process was killed, perhaps for want of memory"
STOPPED = "its process was told to stop"
_NEVER = 60 * 24 * 365  # minutes: jobs of this machine have no time limit
_POLL = {"local": 0.05, "debug": 0.0, "slurm": 2.0}  # seconds between two looks at the jobs


# -- in the job's process --------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """The cells that one process works off, one after another.

    Args:
        cells: in order, each after what it needs.
        events: file to which a line is added when a cell starts and when it ends.
        cluster: where the job runs: "local", "slurm" or "debug".
        device: of a local job: a GPU as `CUDA_VISIBLE_DEVICES` takes it; "" for the CPU.
        alive: of a local job: a lock that the comparison holds as long as it lives.
    """

    cells: tuple[Cell, ...]
    events: Path
    cluster: str = "debug"
    device: str = ""
    alive: Path | None = None

    def __call__(self) -> None:
        """Run the cells that are not done; one that fails stops no other, but those that need it.

        Raises:
            Interrupted: if the process is told to stop, once the running cell has ended.
        """
        if self.cluster == "debug":  # in the comparison's process
            return self._work_off()
        self._set_up()
        with temporary_folder(), running_command():
            self._work_off()

    def _work_off(self) -> None:
        failed: set[Path] = set()
        for cell in self.cells:
            if failed.intersection(cell.needs):
                continue
            self._tell(cell, event="start", pid=os.getpid())
            try:
                reason = run_cell(cell)
            except Interrupted as interrupted:
                self._tell(cell, event="end", reason=STOPPED, signal=interrupted.exit_code - 128)
                if self.cluster == "debug":  # which opens a debugger for an exception
                    return
                raise
            if reason is not None:
                failed.add(cell.folder)
            self._tell(cell, event="end", reason=reason)

    def checkpoint(self) -> DelayedSubmission:
        """Return the job that SLURM queues again at its time limit, to go on from checkpoints."""
        return DelayedSubmission(self)

    def _set_up(self) -> None:
        """Set the process up, before torch looks for devices."""
        if self.cluster == "local":
            os.environ["CUDA_VISIBLE_DEVICES"] = self.device
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it
        logging.basicConfig(
            format="%(levelname)s: %(message)s", level=logging.INFO, stream=sys.stderr
        )
        if self.alive is not None:
            threading.Thread(target=_end_with, args=(self.alive,), daemon=True).start()

    def _tell(self, cell: Cell, **event: object) -> None:
        with self.events.open("a") as file:
            file.write(json.dumps({"folder": str(cell.folder), **event}) + "\n")


def _end_with(lock: Path) -> None:
    """End this process when the comparison that holds the lock dies, or its folder is lost."""
    with suppress(OSError), FileLock(lock, poll_interval=0.2):
        pass
    while True:  # once for the cell, which saves its state, and once more for the idle process
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)


# -- in the comparison's process -------------------------------------------------------------------


@dataclass
class _Running:
    """A job that has been submitted.

    Args:
        job: with its cells.
        submitted: submitit's handle of it.
        left: the cells that have not ended, in order.
        current: the cell that it works on.
        stopped: whether it told that it was told to stop.
        read: how many of its events have been read, in characters.
    """

    job: Job
    submitted: Submitted[None]
    left: list[Cell] = field(default_factory=list)
    current: Cell | None = None
    stopped: bool = False
    read: int = 0


class Execution:
    """Runs the cells of a comparison, as many jobs at a time as there are devices.

    Args:
        folder: where the jobs leave their files while they run.
        cluster: where they run.
        devices: of this machine, as `CUDA_VISIBLE_DEVICES` takes them; "" for the CPU.
        started: told of each cell that has started.
        ended: told of each cell that has ended and why it failed, None if it did not.
    """

    def __init__(
        self,
        folder: Path,
        cluster: ClusterSettings,
        devices: Sequence[str],
        *,
        started: Callable[[Cell], None],
        ended: Callable[[Cell, str | None], None],
    ) -> None:
        self.folder = folder
        self.cluster = cluster
        self.free = list(devices)
        self.failed: dict[Path, str] = {}
        self._started, self._ended = started, ended
        self._executor = _executor(folder, cluster)
        self._waiting: list[list[Cell]] = []
        self._running: list[_Running] = []
        self._alive = folder / "alive.lock"
        self._locks = False  # whether its file system has locks
        self._lost = False  # whether a job ended before its cells did; its files are kept
        self._count = 0

    def run(self, cells: Sequence[Cell]) -> dict[Path, str]:
        """Run cells, each once what it needs is there; a failure stops no other.

        Args:
            cells: those that are not done; what they need is among them, before them, or done.

        Returns:
            `{folder: reason}` of the cells that failed or lack what they need.

        Raises:
            Interrupted: if this process is told to stop, once the running cells have saved
                their state.
        """
        if not cells:
            return {}
        _delete_left_behind(self.folder.parent)
        refuse_lost(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines: dict[tuple[str, str, int], list[Cell]] = {}
        for cell in cells:
            lines.setdefault((cell.method, cell.backbone, cell.seed), []).append(cell)
        self._waiting = list(lines.values())
        with taking_turns(self._alive) as self._locks, self._told_to_stop() as told:
            try:
                while self._waiting or self._running:
                    self._submit_ready()
                    time.sleep(_POLL[self.cluster.name])
                    for running in list(self._running):
                        self._look_at(running)
                    if told:
                        raise Interrupted(told[0])
            except BaseException:
                self._stop()
                raise
        if not self._lost:
            self._clean_up()
        return self.failed

    def _submit_ready(self) -> None:
        """Submit the jobs whose needs are met, as far as there are devices for them."""
        for line in list(self._waiting):
            for cell in list(line):
                if lost := [folder for folder in cell.needs if folder in self.failed]:
                    line.remove(cell)
                    self._end(cell, f"its pretraining failed: {self.failed[lost[0]]}")
            if not line:
                self._waiting.remove(line)
            elif (self.free or self.cluster.name == "slurm") and not self._needs_another(line):
                self._waiting.remove(line)
                self._submit(line)

    def _needs_another(self, line: Sequence[Cell]) -> bool:
        """Return whether a cell of a line needs one of another job that has not ended."""
        own = {cell.folder for cell in line}
        jobs = [*self._waiting, *(running.left for running in self._running)]
        unfinished = {cell.folder for cells in jobs for cell in cells} - own
        return any(unfinished.intersection(cell.needs) for cell in line)

    def _submit(self, line: list[Cell]) -> None:
        refuse_lost(self.folder)
        self._count += 1
        local = self.cluster.name == "local"
        job = Job(
            cells=tuple(line),
            events=self.folder / f"events-{self._count}.jsonl",
            cluster=self.cluster.name,
            device=self.free.pop(0) if self.cluster.name != "slurm" else "",
            alive=self._alive if local and self._locks else None,
        )
        # A terminal's Ctrl-C is for this process, which passes it on: children inherit the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            submitted = self._executor.submit(job)
        except (FailedJobError, FailedSubmissionError, OSError) as error:  # what `sbatch` says
            reason = " ".join(str(error).split())[-300:]
            raise ConfigError(f"cluster: the job was not accepted: {reason}") from error
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        self._running.append(_Running(job, submitted, list(line)))

    def _look_at(self, running: _Running) -> None:
        """Read what a job tells; once it has ended, free its device and see what it left undone."""
        over = running.submitted.done()  # first: what is told before the end is read below
        self._read_events(running)
        if not over:
            return
        self._running.remove(running)
        if self.cluster.name != "slurm":
            self.free.append(running.job.device)
        if running.left and not running.stopped and (reason := self._reason_of_loss(running)):
            cell = running.current or running.left[0]
            running.left.remove(cell)
            self._end(cell, reason)
        if running.left:  # these go on in another process, or fail as what they need has failed
            self._waiting.insert(0, running.left)

    def _read_events(self, running: _Running) -> None:
        try:
            text = running.job.events.read_text()[running.read :]
        except FileNotFoundError:
            return
        for line in text.splitlines(keepends=True):
            if not line.endswith("\n"):
                break  # it is being written
            running.read += len(line)
            event = json.loads(line)
            cell = next((c for c in running.left if str(c.folder) == event["folder"]), None)
            if cell is None:
                continue
            if event["event"] == "start":
                if running.current is not cell:  # a job that was queued again starts it twice
                    self._started(cell)
                running.current = cell
                continue
            running.current = None
            running.left.remove(cell)
            self._end(cell, event["reason"])
            running.stopped = "signal" in event
            if running.stopped and self.cluster.name == "debug":
                raise Interrupted(event["signal"])

    def _end(self, cell: Cell, reason: str | None) -> None:
        if reason is not None:
            self.failed[cell.folder] = reason
        self._ended(cell, reason)

    def _reason_of_loss(self, running: _Running) -> str | None:
        """Return why a job died before it had worked off its cells; None if it did not die."""
        submitted, where = running.submitted, running.submitted.paths.stderr
        if self.cluster.name == "debug":
            return None
        if not submitted.paths.result_pickle.exists():
            self._lost = True
            if self.cluster.name == "local":
                return KILLED
            return f"its job ended, {submitted.state} (see {where})"
        error = submitted.exception()
        if error is None:
            return None
        self._lost = True
        trace = [line for line in str(error).splitlines() if line.strip("- ")]
        last = next((line for line in reversed(trace) if "Error" in line), trace[-1])
        return f"{' '.join(last.split())[:300]} (see {where})"

    def _stop(self) -> None:
        """Tell all running jobs to stop; wait for local ones, each of which saves its state."""
        if self.cluster.name == "slurm":
            for running in self._running:
                running.submitted.cancel(check=False)
            return
        while self.cluster.name == "local" and any(not r.submitted.done() for r in self._running):
            for running in self._running:
                if not running.submitted.done():  # the job's id is the process's
                    os.kill(int(running.submitted.job_id), signal.SIGTERM)
            for _ in range(20):
                if all(running.submitted.done() for running in self._running):
                    break
                time.sleep(0.05)
        self._clean_up()

    def _clean_up(self) -> None:
        """Delete the files of the jobs; the cells have logs of their own."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if self.folder.parent.is_dir() and not any(self.folder.parent.iterdir()):
            self.folder.parent.rmdir()

    @contextmanager
    def _told_to_stop(self) -> Iterator[list[int]]:
        """Yield a list that gets the number of a signal to stop; once is enough.

        In a debugged comparison signals are those of its cells.
        """
        told: list[int] = []
        if self.cluster.name == "debug":
            yield told
            return

        def note(number: int, frame: FrameType | None) -> None:
            if told and number == signal.SIGINT:  # asked twice; the jobs save their state
                stop_at_once()
            told.append(number)

        numbers = [n for n in STOPPING if may_be_taken(n)]
        kept: dict[int, Any] = {number: signal.signal(number, note) for number in numbers}
        try:
            yield told
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)


def _delete_left_behind(jobs: Path) -> None:
    """Delete the files of local jobs whose comparison has died, and the jobs with it."""
    for lock in jobs.glob("local-*/alive.lock"):
        try:
            with FileLock(lock, timeout=0):
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # another comparison is at work in this folder, or there are no locks
            continue


def _executor(folder: Path, cluster: ClusterSettings) -> AutoExecutor:
    """Return the executor of submitit that runs the jobs."""
    executor = AutoExecutor(folder=folder, cluster=cluster.name)
    if cluster.name == "local":
        executor.update_parameters(timeout_min=_NEVER)
    elif cluster.name == "slurm":
        executor.update_parameters(
            name="decur",
            timeout_min=cluster.timeout_min,
            gpus_per_node=cluster.gpus or None,
            cpus_per_task=cluster.cpus,
            mem_gb=cluster.mem_gb,
            slurm_partition=cluster.partition,
            slurm_additional_parameters=dict(cluster.extra),
        )
    return executor
