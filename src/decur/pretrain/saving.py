"""Checkpoints that are whole or not there, and runs that stop and go on without a trace."""

from __future__ import annotations

import logging
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from decur.errors import DataError, Interrupted
from decur.pretrain.data import ResumableLoader
from decur.pretrain.module import Pretrainer
from decur.pretrain.settings import CheckpointSettings
from decur.runs import RunFolder, atomic

log = logging.getLogger(__name__)
AGREE_EVERY = 10  # steps between two agreements of several processes to save


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name first; reads tensors and plain types only."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write `checkpoint` to `path`, whole or not at all."""
        with atomic(Path(path)) as temporary:
            torch.save(checkpoint, temporary)

    def load_checkpoint(
        self, path: Any, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint without ever unpickling objects."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)


def newest_checkpoint(run: RunFolder) -> Path | None:
    """The newest checkpoint that can be read; damaged ones are passed over with a warning.

    Raises:
        DataError: if there are checkpoints and none can be read.
    """
    saved = run.saved_checkpoints()
    for path in saved:
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # torch raises many kinds for damaged files
            reason = " ".join(str(error).split())[:120]
            log.warning("%s is damaged (%s); going back to the one before", path, reason)
        else:
            return path
    if saved:
        raise DataError(
            f"{run.checkpoints}: none of the {len(saved)} checkpoints can be read; "
            "start anew with --overwrite"
        )
    return None


class SaveState(Checkpoint):
    """Saves at each epoch's end, every few minutes, and when told to stop.

    Args:
        run: the run's folder.
        settings: how often, and how many are kept.
    """

    def __init__(self, run: RunFolder, settings: CheckpointSettings) -> None:
        self.run = run
        self.settings = settings
        self.told: int | None = None  # the signal that told the run to stop
        self._saved_at = time.monotonic()
        self._handlers: dict[int, Any] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over SIGTERM and Ctrl-C."""
        self._saved_at = time.monotonic()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._handlers[number] = signal.signal(number, self._on_signal)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take them over from Lightning, too, which would end the run unsaved."""
        for number in self._handlers:
            signal.signal(number, self._on_signal)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.told is not None and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: at once
        self.told = number
        log.warning("finishing this step, then saving; Ctrl-C again stops at once")

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when the time has come or the run is told to stop."""
        if trainer.is_last_batch or trainer.should_stop:
            return  # the epoch's end follows: a state in between would lose its row of metrics
        self._advance(trainer, trainer.current_epoch, batch_idx + 1)
        due = time.monotonic() - self._saved_at > self.settings.every_minutes * 60
        wanted = due or self.told is not None
        if trainer.world_size > 1:
            if batch_idx % AGREE_EVERY:
                return
            wanted = trainer.strategy.reduce_boolean_decision(wanted, all=False)
        if wanted:
            self.save(trainer, pl_module)
            self._stop_if_told(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save after the monitors have found nothing wrong."""
        self._advance(trainer, trainer.current_epoch + 1, 0)
        self.save(trainer, pl_module)
        self._stop_if_told(trainer)

    def _advance(self, trainer: L.Trainer, epoch: int, batch: int) -> None:
        loader = trainer.train_dataloader
        if isinstance(loader, ResumableLoader):
            loader.progress = (epoch, batch)

    def _stop_if_told(self, trainer: L.Trainer) -> None:
        told = self.told
        if trainer.world_size > 1:  # any process may have been told, all stop together
            told = trainer.strategy.reduce_boolean_decision(told is not None, all=False) and (
                told or signal.SIGTERM
            )
        if told:
            raise Interrupted(told)

    def save(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save now; a full disk is a warning, and the older checkpoints stay."""
        if isinstance(pl_module, Pretrainer):
            pl_module.check_finite()  # never keep the state of a step that went wrong
            pl_module.check_weights()
        self._saved_at = time.monotonic()
        path = self.run.checkpoints / f"step-{trainer.global_step:09d}.ckpt"
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except (OSError, RuntimeError) as error:  # torch's zip writer turns ENOSPC to RuntimeError
            reason = " ".join(str(error).split())[:200]
            log.warning("%s could not be written (%s); training goes on", path, reason)
            return
        if trainer.is_global_zero:
            for old in self.run.saved_checkpoints()[self.settings.keep :]:
                old.unlink(missing_ok=True)
