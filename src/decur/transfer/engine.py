"""Where training on labels and testing run: a Lightning Trainer, resuming, the best epoch."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decur.digest import digest
from decur.encoders.base import evaluating
from decur.errors import DivergedError
from decur.pretrain.data import ResumableLoader
from decur.pretrain.metrics import write_metrics
from decur.pretrain.settings import CheckpointSettings
from decur.pretrain.state import AtomicCheckpointIO, TrainingState
from decur.runs import RunFolder
from decur.transfer.tasks import Kept, Task
from decur.transfer.trainee import Trainee, join_kept

FORMAT = 1  # of a saved state; raised when a training would go on from it otherwise
SAVE_PAUSE = 60.0  # seconds of training that an epoch's end must follow to be worth saving
LINES = 10  # of the terminal, for a whole training
WRITE_PAUSE = 1.0  # seconds between two writings of losses: an epoch may be a single short step


class PictureLoader(ResumableLoader):
    """Pictures and labels to train on.

    Attributes:
        seed: of the order.
        identity: what tells these batches from others, by the name of the setting.
    """

    seed: int
    identity: Mapping[str, object]


class Engine:
    """Where training and testing run.

    Args:
        folder: of the run.
        console: where the lines of epochs go.
        device: "cpu" or "cuda".
        precision: as Lightning names it.
    """

    def __init__(
        self, folder: RunFolder, console: Console, device: str = "cpu", precision: str = "32-true"
    ) -> None:
        self.folder, self.console, self.device, self.precision = folder, console, device, precision
        self.best: Best | None = None  # of the last training that had a validation part

    def fit(
        self, trainee: Trainee, loader: DataLoader[Any], validation: Validation | None = None
    ) -> None:
        """Train; the model ends on the CPU in eval mode.

        A training on pictures that was interrupted goes on from the state that it left in the
        folder `unfinished`.

        Args:
            trainee: what is trained.
            loader: the batches.
            validation: chooses the epoch whose weights are kept; None: the last one.

        Raises:
            DivergedError: if the loss is not finite.
            Interrupted: when told to stop, once the state is saved.
        """
        lines = _EpochLines(self.folder, self.console, validation)
        callbacks: list[Callback] = [lines]
        if validation is not None:
            self.best = validation.best
            callbacks.insert(0, validation)
        state = start = None
        if isinstance(loader, PictureLoader):  # a head on vectors is trained in a moment
            trainee.seed = loader.seed
            state = self._state(trainee, loader)
            callbacks.append(state)
            start = state.find()
        if start is not None:
            self.console.print(f"resuming  {start}", highlight=False)
            if validation is not None and _is_over(start, validation, lines):
                validation.best.restore(trainee.model)
                trainee.model.cpu().eval()
                return
        trainee.train()  # Lightning leaves eval mode as it finds it; frozen encoders stay in it
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
        trainer = self._trainer(
            max_epochs=math.ceil(trainee.total / len(loader)),
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=state is not None,
        )
        try:
            trainer.fit(trainee, loader, ckpt_path=start, weights_only=True)
        finally:
            if state is not None:  # Lightning does not where training ends in an error
                state.release_signals()
        if validation is not None:
            validation.best.restore(trainee.model)
        trainee.model.cpu().eval()

    def test(self, trainee: Trainee, loader: DataLoader[Any], samples: int) -> Kept:
        """Run over the test part; one row a sample, in its order."""
        trainee.samples = samples
        parts: list[Any] = self._trainer().predict(trainee, loader) or []
        trainee.model.cpu()
        return join_kept(parts, trainee.task.target.void)

    def _state(self, trainee: Trainee, loader: PictureLoader) -> TrainingState:
        """Return the state of a training on pictures, known by all that it depends on."""
        known_by = {
            "format": FORMAT,
            "seed": loader.seed,
            **loader.identity,
            **trainee.identity(),
            "device": self.device,
            "precision": self.precision,
        }
        identity = {name: digest(value) for name, value in known_by.items()}
        return TrainingState(
            unfinished(self.folder),
            CheckpointSettings(keep=1),
            loader=loader,
            identity=identity,
            pause=SAVE_PAUSE,
        )

    def _trainer(self, **options: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="gpu" if self.device == "cuda" else "cpu",
            devices=1,
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
            **{"enable_checkpointing": False, **options},
        )


def _is_over(start: Path, validation: Validation, lines: _EpochLines) -> bool:
    """Return whether patience had run out where a saved training stopped; then write its losses."""
    saved = torch.load(start, map_location="cpu", weights_only=True)["callbacks"]
    validation.load_state_dict(saved[validation.state_key])
    if validation.best.is_over:
        lines.load_state_dict(saved[lines.state_key])
        lines.write()
    return validation.best.is_over


def unfinished(folder: RunFolder) -> RunFolder:
    """Return the folder in a run's folder that holds the state of an interrupted training."""
    return RunFolder(folder.path / "unfinished")


# -- after each epoch ------------------------------------------------------------------------------


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
        found = []
        with evaluating(pl_module):
            for number, batch in enumerate(self.loader):
                with trainer.precision_plugin.forward_context():
                    moved = pl_module.transfer_batch_to_device(batch, pl_module.device, 0)
                    found.append(pl_module.predict_step(moved, number))
        kept = {key: np.concatenate([part[key] for part in found]) for key in self.task.measured}
        self.score = self.task.metrics(self.task.in_units(kept))[self.task.main]
        model: Any = pl_module.model
        self.best.look(trainer.current_epoch + 1, self.score, model)
        if self.best.is_over:
            trainer.should_stop = True


class _EpochLines(Callback):
    """Write the loss of each epoch to `metrics.csv` and the terminal; stop where it is infinite."""

    def __init__(
        self, folder: RunFolder, console: Console, validation: Validation | None = None
    ) -> None:
        self.folder, self.console, self.validation = folder, console, validation
        self.rows: list[dict[str, float]] = []
        self.written = -math.inf

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write()  # a training goes on; its epoch may have been the last

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        epoch = trainer.current_epoch + 1
        loss = float(torch.stack([x.cpu() for x in pl_module.losses]).mean())
        pl_module.losses.clear()
        if not math.isfinite(loss):
            settings = pl_module.settings
            raise DivergedError(
                f"non-finite loss in epoch {epoch}: lower fit.lr (it is {settings.lr:g} of "
                f"{settings.name})"
            )
        row: dict[str, float] = {"epoch": epoch, "step": trainer.global_step, "loss": loss}
        said = f"epoch {epoch}  loss {loss:.4g}"
        if self.validation is not None:
            metric, score = self.validation.best.metric, self.validation.score
            row[f"val/{metric}"] = score
            said += f"  {metric} {score:.4g} (validation)"
        self.rows.append(row)
        if time.monotonic() - self.written > WRITE_PAUSE:
            self.write()
        last = trainer.max_epochs or -1
        if last < 0 or epoch == last or epoch % max(1, last // LINES) == 0:
            self.console.print(said, highlight=False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.write()

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.write()

    def write(self) -> None:
        if self.rows:
            write_metrics(self.folder, self.rows)
        self.written = time.monotonic()
