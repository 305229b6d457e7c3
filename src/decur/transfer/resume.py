"""Training on pictures that stops and goes on without a trace."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch

from decur.errors import DataError
from decur.pretrain.saving import SaveState, newest_checkpoint
from decur.pretrain.settings import CheckpointSettings
from decur.runs import RunFolder
from decur.transfer.loading import PictureLoader
from decur.views import sample_seeds

log = logging.getLogger(__name__)
FORMAT = 1  # of a saved state; raised when a training would go on from it otherwise
PAUSE = 60.0  # seconds of training that an epoch's end must follow to be worth saving
KEY = "decur-transfer"  # of what a saved state belongs to


class ResumableTraining(SaveState):
    """Saves a training at an epoch's end, every few minutes, and when told to stop.

    An epoch's end is passed over within a minute of the start or of the last save, so that a
    short training never waits for the disk. One state is kept. Crops and dropout become a function
    of (seed, epoch, step).

    Args:
        run: a folder of its own for the states.
        loader: of the training; its seed is that of crops and dropout, too.
        known_by: what else tells this training from others, by the name of the setting.
    """

    def __init__(
        self, run: RunFolder, loader: PictureLoader, known_by: Mapping[str, object]
    ) -> None:
        super().__init__(run, CheckpointSettings(keep=1))
        self.loader = loader
        parts = {"format": FORMAT, "seed": loader.seed, **loader.known_by, **known_by}
        self.known_by = {
            name: hashlib.sha256(repr(value).encode()).hexdigest() for name, value in parts.items()
        }

    def find(self) -> Path | None:
        """The state to go on from; one that is damaged or of another training is discarded."""
        try:
            path = newest_checkpoint(self.run)
        except DataError:
            log.warning("no state in %s can be read; training starts anew", self.run.checkpoints)
            path = None
        if path is not None:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            belongs = saved.get(KEY, {}).get("known_by", {})
            other = [name for name, value in self.known_by.items() if belongs.get(name) != value]
            if not other:
                return path
            log.warning(
                "%s is of another training (not the same: %s); it is discarded, and training "
                "starts anew",
                path,
                ", ".join(other),
            )
        shutil.rmtree(self.run.path, ignore_errors=True)
        return None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw what this step draws, whatever came before it."""
        step = sample_seeds([f"step {batch_idx}"], self.loader.seed, trainer.current_epoch)
        torch.manual_seed(int(step))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save if enough has been done since the last save, or the training is told to stop."""
        self._advance(trainer, trainer.current_epoch + 1, 0)
        if self.told is not None or time.monotonic() - self._saved_at >= PAUSE:
            self.save(trainer, pl_module)
        self._stop_if_told(trainer)

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note what the state belongs to, and the place in the data."""
        checkpoint[KEY] = {"known_by": self.known_by, "place": self.loader.state_dict()}

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on from the place in the data before its workers read ahead.

        Lightning does so itself within an epoch, but not at its end.
        """
        self.loader.load_state_dict(checkpoint[KEY]["place"])
