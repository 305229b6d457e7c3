"""Training on labels, and testing, under a Lightning Trainer."""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from numpy.typing import NDArray
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader

from decur.data import PairedDataset
from decur.digest import digest
from decur.errors import DivergedError
from decur.features import Features
from decur.memory import require_memory_for_batch
from decur.modality import Modality
from decur.pretrain.callbacks import write_metrics
from decur.pretrain.settings import CheckpointSettings
from decur.pretrain.state import AtomicCheckpointIO, TrainingState
from decur.runs import RunFolder
from decur.transfer.augment import Averaging, mean_colour
from decur.transfer.batches import (
    OnStoredMaps,
    OnVectors,
    PictureLoader,
    picture_loader,
    stored_maps,
    vector_loader,
)
from decur.transfer.heads import FCN, Fusion, LateFusion
from decur.transfer.settings import FitSettings, TransferSettings
from decur.transfer.splits import Parts
from decur.transfer.tasks import Kept, Task
from decur.transfer.trainee import Trainee, join_kept
from decur.transfer.validation import Best, Validation

FORMAT = 1  # of a saved state; raised when a training would go on from it otherwise
SAVE_PAUSE = 60.0  # seconds of training that an epoch's end must follow to be worth saving
LINES = 10  # of the terminal, for a whole training
WRITE_PAUSE = 1.0  # seconds between two writings of losses: an epoch may be a single short step


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


# -- from a model and the parts of the data to what the task keeps of the test part ----------------


def train_on_pictures(
    model: Fusion, parts: Parts, settings: TransferSettings, engine: Engine
) -> Kept:
    """Train the head, and the encoders unless frozen, on pictures; test.

    Args:
        model: that is trained.
        parts: samples to train on and to test on.
        settings: with a complete `fit`.
        engine: where it runs.
    """
    data, task, names = parts.data, parts.task, list(model.encoders)
    sensors = [data.modalities[name] for name in names]
    require_memory_for_batch(sensors, settings.loader.batch_size, settings.size)
    batches = picture_loader(data, parts.train, task, names, settings.loader, settings.seed)
    trainee = Trainee(
        model,
        task,
        settings.fit,
        _steps(settings.fit, batches),
        modalities={name: model.modality(name) for name in names},
        size=settings.size,
        warmup=_warmup(settings.fit, batches),
        averaging=averaging_of(settings, {name: model.modality(name) for name in names}),
    )
    engine.fit(trainee, batches, _validation(data, parts, settings, names))
    if isinstance(model, LateFusion):
        task.finish(model.head)
    tested = picture_loader(data, parts.test, task, names, settings.loader)
    return engine.test(trainee, tested, len(parts.test))


def _validation(
    data: PairedDataset, parts: Parts, settings: TransferSettings, names: Sequence[str]
) -> Validation | None:
    """Return what scores the validation part after each epoch; None where there is none."""
    if not len(parts.val):
        return None
    batches = picture_loader(data, parts.val, parts.task, names, settings.loader)
    patience = settings.fit.patience
    return Validation(batches, parts.task, patience=patience, samples=len(parts.val))


def averaging_of(
    settings: TransferSettings, modalities: Mapping[str, Modality]
) -> Averaging | None:
    """Return which versions of a test picture are looked at; None for the picture as it is."""
    if not settings.averages:
        return None
    fill = {name: mean_colour(modality) for name, modality in modalities.items()}
    return Averaging(settings.test_scales, settings.test_flip, settings.test_window, fill)


def train_on_maps(
    model: FCN, seen: Features, parts: Parts, settings: TransferSettings, engine: Engine
) -> Kept:
    """Train an FCN's convolutions on the feature maps of frozen encoders, as on pictures; test.

    Args:
        model: that is trained.
        seen: the feature maps, and the masks.
        parts: samples to train on and to test on.
        settings: with a complete `fit`.
        engine: where it runs.
    """
    task, stored = parts.task, stored_maps(parts.data, parts.task.name, seen)
    names = list(stored.modalities)
    here = replace(settings.loader, workers=0)  # reading is a copy; workers would cost more
    batches = picture_loader(stored, parts.train, task, names, here, settings.seed)
    trainee = _plain_trainee(OnStoredMaps(model), task, settings.fit, batches)
    here_settings = replace(settings, loader=here)
    engine.fit(trainee, batches, _validation(stored, parts, here_settings, names))
    tested = picture_loader(stored, parts.test, task, names, here)
    return engine.test(trainee, tested, len(parts.test))


def train_on_vectors(
    head: nn.Linear,
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    settings: TransferSettings,
    engine: Engine,
    validated: tuple[NDArray[np.float32], NDArray[Any]] | None = None,
) -> None:
    """Train a linear layer by SGD as in the paper's appendix B.2, without augmentation.

    Args:
        head: the layer, trained in place.
        x: (N, D) vectors of the training part.
        labels: (N, ...) known labels of it.
        task: what they mean.
        settings: with a complete `fit`; a batch is 256 in the paper.
        engine: where it runs.
        validated: vectors and labels that choose the best epoch; None: the last one is kept.

    Raises:
        DivergedError: if the loss is not finite.
    """
    batches = vector_loader(x, labels, task.name, settings.loader.batch_size, settings.seed)
    validation = None
    if validated is not None:
        whole = vector_loader(*validated, task.name, len(validated[0]), settings.seed)
        patience = settings.fit.patience
        validation = Validation(whole, task, patience=patience, samples=len(validated[0]))
    trainee = _plain_trainee(OnVectors(head), task, settings.fit, batches)
    engine.fit(trainee, batches, validation)


def _plain_trainee(
    model: nn.Module, task: Task, settings: FitSettings, batches: DataLoader[Any]
) -> Trainee:
    """Return a trainee whose inputs are neither scaled nor augmented."""
    total, warmup = _steps(settings, batches), _warmup(settings, batches)
    return Trainee(model, task, settings, total, {}, warmup=warmup)


def _steps(settings: FitSettings, batches: DataLoader[Any]) -> int:
    """Return the optimiser steps of the whole training."""
    assert settings.epochs is not None  # settings are complete
    return settings.steps or settings.epochs * len(batches)


def _warmup(settings: FitSettings, batches: DataLoader[Any]) -> int:
    """Return the steps in which the rate rises."""
    return round(settings.warmup_epochs * len(batches))
