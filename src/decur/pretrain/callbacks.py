"""Callbacks of a training: metrics to files and the terminal, and the list of bad samples."""

from __future__ import annotations

import csv
import logging
import time
from functools import partial
from typing import Any, ClassVar

import lightning as L
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.progress import TimeRemainingColumn

from decur.errors import DataError
from decur.objectives.blocks import COMMON, UNIQUE
from decur.pretrain.data import PairedData
from decur.pretrain.distributed import from_first
from decur.pretrain.metrics import agreements, read_metrics, write_metrics
from decur.pretrain.module import Pretrainer
from decur.pretrain.monitors import effective_ranks, encode_samples, probes, refuse_collapse
from decur.pretrain.settings import MonitorSettings
from decur.runs import RunFolder, plain_writing
from decur.terminal import progress_bar

log = logging.getLogger(__name__)


class EpochLog(Callback):
    """Write means, ranks and probes of each epoch to `metrics.csv`, TensorBoard and the terminal.

    Args:
        run: the run's folder.
        settings: how often ranks and probes are computed, and on how many samples.
        console: where the line of an epoch is printed.
        every_steps: how often the loss of a step goes to TensorBoard; 0: never.
        word: what an epoch is called in the terminal.
    """

    def __init__(
        self,
        run: RunFolder,
        settings: MonitorSettings,
        console: Console,
        every_steps: int = 50,
        word: str = "epoch",
    ) -> None:
        self.run, self.settings, self.console = run, settings, console
        self.every_steps, self.word = every_steps, word
        self.rows: list[dict[str, float]] = []
        self._started, self._steps = time.monotonic(), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the rows of epochs before the one that a resumed run goes on with."""
        epoch = trainer.current_epoch
        self.rows = [row for row in read_metrics(self.run) if row["epoch"] <= epoch]
        self._started, self._steps = time.monotonic(), 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started, self._steps = time.monotonic(), 0

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write loss and rate of some steps to TensorBoard: an epoch can take hours."""
        self._steps += 1
        if self.every_steps and (batch_idx + 1) % self.every_steps == 0 and outputs is not None:
            values = {"step/loss": float(outputs["loss"]), **_rates(trainer)}
            for logger in trainer.loggers:
                logger.log_metrics(values, trainer.global_step)

    def pairs_per_second(self, pl_module: Pretrainer) -> float:
        """Return how many samples of this epoch were trained on in a second, by all processes."""
        return self._steps * pl_module.batch_size / max(1e-9, time.monotonic() - self._started)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write and print the row of the epoch; stop a run that has collapsed."""
        assert isinstance(pl_module, Pretrainer)
        pl_module.check_finite()
        speed = self.pairs_per_second(pl_module)
        means = pl_module.meter.means()
        pl_module.meter.reset()
        epoch = trainer.current_epoch + 1
        row = {"epoch": epoch, "step": trainer.global_step, **means, **_rates(trainer)}
        found: dict[str, float] = {}
        every = self.settings.every_epochs
        if every and (epoch % every == 0 or epoch == trainer.max_epochs):
            if pl_module.is_sharded:  # a shard alone has no features: all must run
                found = trainer.strategy.broadcast(self._monitor(trainer, pl_module))
            else:
                found = from_first(partial(self._monitor, trainer, pl_module))
        row = {**row, **found, "pairs_per_second": speed}
        if trainer.is_global_zero:
            self.rows.append(row)
            write_metrics(self.run, self.rows)
            for logger in trainer.loggers:
                logger.log_metrics({k: v for k, v in row.items() if k != "epoch"}, epoch)
            line = epoch_line(row, trainer.max_epochs or 0, self.word)
            self.console.print(line, highlight=False)
        refuse_collapse(found, self.settings.min_rank)

    def _monitor(self, trainer: L.Trainer, model: Pretrainer) -> dict[str, float]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, PairedData):
            return {}
        encoded = encode_samples(model, data, self.settings.samples)
        return {**effective_ranks(encoded), **probes(encoded, data, model.seed)}


def _rates(trainer: L.Trainer) -> dict[str, float]:
    return {"lr": trainer.optimizers[0].param_groups[0]["lr"]}


def epoch_line(row: dict[str, float], epochs: int, word: str = "epoch") -> str:
    """Return the line that the terminal shows of an epoch, whose name is `word`."""
    parts = [f"{word} {row['epoch']:.0f}/{epochs}", f"loss {row['loss']:.4g}"]
    found = agreements(row)
    for kind in (COMMON, UNIQUE):
        if diagonals := found.get(kind):
            parts.append(f"{kind} diagonal {sum(diagonals) / len(diagonals):+.3f}")
    effective = {k.rsplit("/", 1)[1]: v for k, v in row.items() if k.startswith("rank/features/")}
    if effective:
        parts.append("rank " + " ".join(f"{name} {rank:.1f}" for name, rank in effective.items()))
    parts.append(f"{row['pairs_per_second']:.0f} pairs/s")
    return "  ".join(parts)


class ProgressBar(Callback):
    """Show a progress bar over the whole run on a terminal; a log file has the lines of epochs.

    Args:
        epochs: the log whose pairs a second are shown.
        console: that of `epochs`, whose lines then stay above the bar.
    """

    def __init__(self, epochs: EpochLog, console: Console) -> None:
        self.epochs = epochs
        speed = "steps, {task.fields[speed]:.0f} pairs/s "
        which = f"{epochs.word} {{task.fields[epoch]}}"
        self.bar = progress_bar(console, which, speed, TimeRemainingColumn(), wide=True)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, from where a resumed run goes on."""
        total = int(trainer.num_training_batches) * (trainer.max_epochs or 1)
        assert isinstance(pl_module, Pretrainer)
        if pl_module.max_steps is not None:
            total = min(total, pl_module.max_steps)
        epoch = self._epoch(trainer)
        self.task = self.bar.add_task(
            "", total=total, completed=trainer.global_step, epoch=epoch, speed=0
        )
        if trainer.is_global_zero:
            self.bar.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Advance the bar by one step."""
        assert isinstance(pl_module, Pretrainer)
        self.bar.update(
            self.task,
            completed=trainer.global_step,
            epoch=self._epoch(trainer),
            speed=self.epochs.pairs_per_second(pl_module),
        )

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Remove the bar, whatever ended the run."""
        self.bar.stop()

    @staticmethod
    def _epoch(trainer: L.Trainer) -> str:
        return f"{trainer.current_epoch + 1}/{trainer.max_epochs}"


class BadSamples(Callback):
    """List samples that cannot be read, and stop the run when they are too many.

    Several processes share one file, in which each reads what the others have found.

    Args:
        run: the run's folder.
        limit: share of the data set that may be bad.
        samples: number of samples of the data set.
    """

    HEADER: ClassVar = ["file", "reason"]

    def __init__(self, run: RunFolder, limit: float, samples: int) -> None:
        self.run, self.limit, self.samples = run, limit, samples
        self.seen: dict[str, str] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Read the list of an interrupted run."""
        self._read()

    def _read(self) -> None:
        if self.run.bad_samples.is_file():
            with self.run.bad_samples.open(newline="") as file:
                rows = [row for row in csv.reader(file) if len(row) == 2 and row != self.HEADER]
            self.seen.update((path, reason) for path, reason in rows)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """List the bad samples of a batch before it is trained on.

        Raises:
            DataError: if more than `limit` of the data set is bad.
        """
        new = {path: reason for path, reason in batch["bad"] if path not in self.seen}
        if not new:
            return
        self._read()  # another process may have listed the same
        new = {path: reason for path, reason in new.items() if path not in self.seen}
        path = self.run.bad_samples
        with plain_writing(path), path.open("a", newline="") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(self.HEADER)
            writer.writerows(new.items())
        self.seen.update(new)
        self._refuse_too_many()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count the bad samples of all processes.

        Raises:
            DataError: if more than `limit` of the data set is bad.
        """
        if trainer.world_size > 1:
            self._read()
            self._refuse_too_many()

    def _refuse_too_many(self) -> None:
        if len(self.seen) > self.limit * self.samples:
            path, reason = list(self.seen.items())[-1]
            raise DataError(
                f"{len(self.seen)} of {self.samples} samples could not be read, more than "
                f"loader.max_bad {self.limit:g} allows; the last: {path}: {reason}; all are in "
                f"{self.run.bad_samples}"
            )
