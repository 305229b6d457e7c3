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
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from decur.data import Batch, PairedDataset
from decur.data.files import resize_mask
from decur.devices import send_batch
from decur.digest import digest
from decur.encoders import Encoder
from decur.errors import DivergedError
from decur.features import Features, scaled
from decur.memory import require_memory_for_batch
from decur.modality import Modality
from decur.pretrain.callbacks import write_metrics
from decur.pretrain.optim import can_fuse
from decur.pretrain.settings import CheckpointSettings
from decur.pretrain.state import AtomicCheckpointIO, TrainingState
from decur.runs import RunFolder
from decur.transfer.augment import Averaging, crop_and_flip, mean_colour, scale_and_flip
from decur.transfer.batches import (
    OnStoredMaps,
    OnVectors,
    PictureLoader,
    picture_loader,
    stored_maps,
    vector_loader,
)
from decur.transfer.heads import FCN, Fusion, LateFusion
from decur.transfer.optim import parameter_groups
from decur.transfer.settings import FitSettings, TransferSettings
from decur.transfer.splits import Parts
from decur.transfer.tasks import Kept, Task
from decur.transfer.validation import Best, Validation
from decur.views import sample_seeds

FORMAT = 1  # of a saved state; raised when a training would go on from it otherwise
SAVE_PAUSE = 60.0  # seconds of training that an epoch's end must follow to be worth saving
LINES = 10  # of the terminal, for a whole training
WRITE_PAUSE = 1.0  # seconds between two writings of losses: an epoch may be a single short step


class Trainee(L.LightningModule):
    """A model and a task, as Lightning trains and tests it.

    Args:
        model: called with pictures, presence, and the size of a map.
        task: what is learned.
        settings: complete ones.
        total: steps of the whole training, for the schedule.
        modalities: sensors whose raw pictures come in; none if they need no scaling.
        size: height and width that pictures are resized to; None for their own.
        warmup: steps in which the rate rises.
        averaging: which versions of a test picture a mask is told from; None for the picture as
            it is.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: FitSettings,
        total: int,
        modalities: Mapping[str, Modality],
        size: int | None = None,
        warmup: int = 0,
        averaging: Averaging | None = None,
    ) -> None:
        super().__init__()
        self.model, self.task, self.settings, self.total = model, task, settings, total
        self.warmup, self.averaging = warmup, averaging
        self.modalities, self.size = dict(modalities), size
        self.fill = {name: mean_colour(modality) for name, modality in self.modalities.items()}
        self.seed: int | None = None  # of what each step draws; None: drawn as it comes
        self.samples = 1  # of the test part
        self.losses: list[Tensor] = []  # of the steps of this epoch
        self.to(memory_format=torch.channels_last)  # which ConvNets like

    def identity(self) -> dict[str, object]:
        """Return what tells this training from others, apart from its batches, before it begins."""
        encoders = [module for module in self.model.modules() if isinstance(module, Encoder)]
        return {
            "model": type(self.model).__name__,
            "encoders": [digest(encoder) for encoder in encoders],
            "freeze": [any(p.requires_grad for p in e.parameters()) for e in encoders],
            "target": sorted(vars(self.task).items()),
            "fit": self.settings.plain(),
            "size": self.size,
        }

    def _pictures(self, batch: Batch) -> dict[str, Tensor]:
        pictures = {}
        for name, x in batch["images"].items():
            if name in self.modalities:
                x = scaled(x, self.modalities[name], self.size)
                x = x.contiguous(memory_format=torch.channels_last)
            pictures[name] = x
        return pictures

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Draw what this step draws, whatever came before it; stop after the last step."""
        if self.seed is not None:
            step = sample_seeds([f"step {batch_idx}"], self.seed, epoch=self.current_epoch)
            torch.manual_seed(int(step))
        # not by max_steps: with it, Lightning does not go on rightly from the end of an epoch
        self.trainer.should_stop = self.global_step + 1 == self.total

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch."""
        images, labels = self._pictures(batch), self._labels_of_one_size(batch)
        images, labels = self._augmented(images, labels)
        loss = self.task.loss(self._output(images, batch["present"], labels), labels)
        self.losses.append(loss.detach().float())
        return loss

    def _augmented(
        self, images: dict[str, Tensor], labels: Tensor
    ) -> tuple[dict[str, Tensor], Tensor]:
        crop, scales, piece = self.settings.crop, self.settings.scales, self.settings.piece
        if not (self.modalities and self.settings.augment):
            return images, labels
        if scales:
            void = self.task.target.void
            return scale_and_flip(images, labels, scales, piece, self.fill, void=void)
        assert crop is not None  # complete settings have one
        images, mask = crop_and_flip(images, labels if self.task.dense else None, crop)
        return images, labels if mask is None else mask

    def _labels_of_one_size(self, batch: Batch) -> Tensor:
        """Return the labels of a batch; masks that differ in size are enlarged to the largest.

        Nearest neighbours keep classes apart. Tests take each mask at its own size.
        """
        labels = batch["target"][self.task.name]
        sizes = batch.get("sizes", {}).get(self.task.name)
        if sizes is None:
            return labels
        largest = (labels.shape[-2], labels.shape[-1])
        masks = [
            resize_mask(mask[:height, :width], largest)
            for mask, (height, width) in zip(labels, sizes.tolist(), strict=True)
        ]
        return torch.stack(masks)

    def _output(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor], labels: Tensor
    ) -> Tensor:
        size = labels.shape[-2:] if self.task.dense else None
        output: Tensor = self.model(images, present, size)
        return output

    def predict_step(self, batch: Batch, batch_idx: int) -> Kept:
        """Return what the metrics need of one batch."""
        labels = batch["target"][self.task.name]
        images, present = self._pictures(batch), batch["present"]
        sizes = batch.get("sizes", {}).get(self.task.name)
        if sizes is None:
            return self._kept(images, present, labels)
        parts, order = [], []
        for height, width in sorted({(h, w) for h, w in sizes.tolist()}):
            rows = (sizes == torch.tensor([height, width])).all(dim=1).nonzero()[:, 0]  # (n,)
            part = (
                {name: x[rows] for name, x in images.items()},
                {name: has[rows] for name, has in present.items()},
                labels[rows, :height, :width],
            )
            parts.append(self._kept(*part))
            order.append(rows.numpy())
        back = np.argsort(np.concatenate(order))
        return {key: rows[back] for key, rows in join_kept(parts, self.task.target.void).items()}

    def _kept(
        self, images: dict[str, Tensor], present: Mapping[str, Tensor], labels: Tensor
    ) -> Kept:
        """Return what the metrics need of samples whose masks are of one size."""
        if self.averaging is None:
            output = self._output(images, present, labels)
        else:
            size = (labels.shape[-2], labels.shape[-1])
            output = self.averaging.output(self.model, images, present, size)
        return self.task.keep(output, labels, self.samples)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD or AdamW over what is trained, its rate a function of the step."""
        groups = parameter_groups(self.model, self.settings)
        trained = [parameter for group in groups for parameter in group["params"]]
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(groups, momentum=self.settings.momentum)
            if self.settings.name == "sgd"
            else torch.optim.AdamW(groups, fused=can_fuse(trained) or None)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def _rate(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return rate_factor(step / self.total, self.settings)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the losses of an epoch that is not over."""
        checkpoint["losses"] = [float(loss) for loss in self.losses]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the losses of an epoch that is not over."""
        self.losses = [torch.tensor(loss) for loss in checkpoint["losses"]]

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Send pictures and labels to the device; presence stays, since it steers."""
        images, target = send_batch(batch["images"], device), send_batch(batch["target"], device)
        return {**batch, "images": images, "target": target}


def rate_factor(done: float, settings: FitSettings) -> float:
    """Return the factor of the learning rate.

    Args:
        done: share of the training that is done, in [0, 1].
        settings: with a schedule.
    """
    if settings.schedule == "steps":
        return 0.1 ** sum(done >= milestone for milestone in settings.milestones)
    return (1 - min(1.0, done)) ** 0.9 if settings.schedule == "poly" else 1.0


def join_kept(parts: Sequence[Kept], void: int) -> Kept:
    """Return what is kept of several batches as one; maps lie at the top left of the largest.

    Args:
        parts: of the batches; what one of them does not have is left out.
        void: what stands where a map has no pixel.
    """
    found: Kept = {}
    for key in parts[0]:
        if not all(key in part for part in parts):
            continue
        rows = [part[key] for part in parts]
        largest = np.max([array.shape[1:] for array in rows], axis=0, initial=0)
        room = [[(0, 0), *((0, n) for n in largest - array.shape[1:])] for array in rows]
        found[key] = np.concatenate(
            [
                np.pad(a, r, constant_values=void) if np.any(r) else a
                for a, r in zip(rows, room, strict=True)
            ]
        )
    return found


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
