"""Training on pictures that stops and goes on without a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch

from decur.digest import digest
from decur.pretrain.settings import CheckpointSettings
from decur.pretrain.state import TrainingState
from decur.runs import RunFolder
from decur.transfer.loading import PictureLoader
from decur.views import sample_seeds

FORMAT = 1  # of a saved state; raised when a training would go on from it otherwise
PAUSE = 60.0  # seconds of training that an epoch's end must follow to be worth saving


class ResumableTraining(TrainingState):
    """Save a training in a folder of its own; crops and dropout follow from (seed, epoch, step).

    Args:
        run: a folder of its own for the states.
        loader: of the training; its seed is that of crops and dropout, too.
        known_by: what else tells this training from others, by the name of the setting.
    """

    def __init__(
        self, run: RunFolder, loader: PictureLoader, known_by: Mapping[str, object]
    ) -> None:
        parts = {"format": FORMAT, "seed": loader.seed, **loader.known_by, **known_by}
        identity = {name: digest(value) for name, value in parts.items()}
        super().__init__(
            run, CheckpointSettings(keep=1), loader=loader, identity=identity, pause=PAUSE
        )
        self.seed = loader.seed

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Draw what this step draws, whatever came before it."""
        step = sample_seeds([f"step {batch_idx}"], self.seed, trainer.current_epoch)
        torch.manual_seed(int(step))
