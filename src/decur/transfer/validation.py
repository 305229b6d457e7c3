"""A validation part: the epoch whose weights are kept, and when training stops early."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decur.transfer.tasks import Task


@dataclass
class Best:
    """The best epoch so far on a validation part.

    Args:
        metric: that the epochs are compared by; higher is better.
        patience: epochs without a better one, after which training stops; None: never.
        samples: of the validation part.
        epoch: the best one, counted from 1; 0: none yet.
        value: of the metric there.
        last: the epoch that was looked at last.
        state: the model's weights and statistics after the best epoch.
    """

    metric: str
    patience: int | None
    samples: int
    epoch: int = 0
    value: float = -math.inf
    last: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.last - self.epoch >= self.patience

    def look(self, epoch: int, value: float, model: nn.Module) -> None:
        """Take the score of an epoch into account.

        An epoch whose score is undefined is never better than another.
        """
        self.last = epoch
        if self.epoch == 0 or value > self.value:
            self.epoch, self.value = epoch, value if math.isfinite(value) else -math.inf
            self.state = {k: v.detach().cpu().clone() for k, v in model.state_dict().items()}

    def restore(self, model: nn.Module) -> None:
        """Give the model the weights of the best epoch."""
        model.load_state_dict(self.state)

    def saved(self) -> dict[str, Any]:
        """Return what a training that is stopped needs to go on."""
        keys = ("epoch", "value", "last", "state")
        return {key: getattr(self, key) for key in keys}

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `saved` gave."""
        for key, value in saved.items():
            setattr(self, key, value)

    def plain(self) -> dict[str, Any]:
        """Return what `results.json` says of it."""
        return {
            "metric": self.metric,
            "value": self.value,
            "samples": self.samples,
            "best_epoch": self.epoch,
            "last_epoch": self.last,
        }


class Validation(Callback):
    """Score the validation part after each epoch; stop where patience has run out.

    Its state stands in the checkpoints of the training, so that an interrupted one keeps the same
    epoch.

    Args:
        loader: the validation part, in order.
        task: what is learned.
        patience: see `Best`.
        samples: of the validation part.
    """

    def __init__(
        self, loader: DataLoader[Any], task: Task, *, patience: int | None, samples: int
    ) -> None:
        self.loader, self.task = loader, task
        self.best = Best(task.main, patience, samples)
        self.score = math.nan  # of the last epoch

    def state_dict(self) -> dict[str, Any]:
        """Return the best epoch so far, for a checkpoint."""
        return self.best.saved()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the best epoch of a checkpoint."""
        self.best.load(state_dict)

    @torch.no_grad()
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the validation part, in evaluation mode and in its order."""
        modes = {module: module.training for module in pl_module.modules()}
        pl_module.eval()
        found = []
        for number, batch in enumerate(self.loader):
            with trainer.precision_plugin.forward_context():
                moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                found.append(pl_module.predict_step(moved, number))
        for module, mode in modes.items():
            module.training = mode
        kept = {key: np.concatenate([part[key] for part in found]) for key in self.task.measured}
        self.score = self.task.metrics(self.task.in_units(kept))[self.task.main]
        model: Any = pl_module.model
        self.best.look(trainer.current_epoch + 1, self.score, model)
        if self.best.is_over:
            trainer.should_stop = True
