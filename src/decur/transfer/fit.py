"""Training on labels, and testing, under a Lightning Trainer."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from rich.console import Console
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample
from torch.utils.data import DataLoader, Subset
from torchvision.transforms import RandomResizedCrop  # type: ignore[import-untyped]

from decur.checkpoint import RunFolder
from decur.data import Batch, Collate, PairedDataset, SkipBad
from decur.errors import ConfigError, DivergedError
from decur.modality import Modality
from decur.pretrain import LoaderSettings
from decur.pretrain.callbacks import write_metrics
from decur.transfer.settings import FitSettings
from decur.transfer.splits import Rows
from decur.transfer.survey import scaled
from decur.transfer.tasks import Kept, Task

RATIO = [3 / 4, 4 / 3]  # of a crop's width to its height
LINES = 10  # of the terminal, for a whole training


def crop_and_flip(
    images: Mapping[str, Tensor], mask: Tensor | None, scale: tuple[float, float]
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Random resized crop and horizontal flip (appendix B.2), the same for all of a sample.

    Args:
        images: `{modality: (B, C, H, W)}`, each of its own size, which stays.
        mask: (B, H, W) class indices, cropped alike without mixing classes.
        scale: smallest and largest area of the crop, as shares of the picture.
    """
    first = next(iter(images.values()))
    count, (height, width) = len(first), first.shape[-2:]
    drawn = [RandomResizedCrop.get_params(first[0], list(scale), RATIO) for _ in range(count)]
    box = torch.tensor(drawn, dtype=torch.float32)  # (B, 4): top, left, height, width
    box /= torch.tensor([height, width, height, width])
    mirror = 1 - 2 * (torch.rand(count) < 0.5).float()
    theta = torch.zeros(
        count, 2, 3
    )  # from places in the crop, in [-1, 1], to places in the picture
    theta[:, 0, 0], theta[:, 0, 2] = box[:, 3] * mirror, 2 * box[:, 1] + box[:, 3] - 1
    theta[:, 1, 1], theta[:, 1, 2] = box[:, 2], 2 * box[:, 0] + box[:, 2] - 1
    theta = theta.to(first.device)

    def take(x: Tensor, mode: str) -> Tensor:
        grid = affine_grid(theta, list(x.shape), align_corners=False)
        return grid_sample(x, grid, mode, padding_mode="border", align_corners=False)

    cropped = {name: take(x, "bilinear") for name, x in images.items()}
    if mask is not None:  # float32 holds class indices exactly
        mask = take(mask[:, None].float(), "nearest")[:, 0].long()
    return cropped, mask


class Trainee(L.LightningModule):
    """A model and a task.

    Args:
        model: called with pictures, presence, and the size of a map.
        task: what is learned.
        settings: complete ones.
        total: steps of the whole training, for the schedule.
        modalities: sensors whose raw pictures come in; none if they need no scaling.
        size: height and width that pictures are resized to; None for their own.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: FitSettings,
        total: int,
        modalities: Mapping[str, Modality],
        size: int | None = None,
    ) -> None:
        super().__init__()
        self.model, self.task, self.settings, self.total = model, task, settings, total
        self.modalities, self.size = dict(modalities), size
        self.samples = 1  # of the test part
        self.losses: list[Tensor] = []

    def _pictures(self, batch: Batch) -> dict[str, Tensor]:
        return {
            name: scaled(x, self.modalities[name], self.size) if name in self.modalities else x
            for name, x in batch["images"].items()
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        images, labels = self._pictures(batch), batch["target"][self.task.name]
        crop = self.settings.crop
        if self.modalities and self.settings.augment and crop is not None:
            images, mask = crop_and_flip(images, labels if self.task.dense else None, crop)
            labels = labels if mask is None else mask
        loss = self.task.loss(self._output(images, batch["present"], labels), labels)
        self.losses.append(loss.detach())
        return loss

    def _output(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor], labels: Tensor
    ) -> Tensor:
        size = labels.shape[-2:] if self.task.dense else None
        return self.model(images, present, size)

    def predict_step(self, batch: Batch, batch_idx: int) -> Kept:
        """What the metrics need."""
        labels = batch["target"][self.task.name]
        output = self._output(self._pictures(batch), batch["present"], labels)
        return self.task.keep(output, labels, self.samples)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD or AdamW over what is trained, its rate by the step."""
        assert self.settings.lr is not None and self.settings.weight_decay is not None
        rate: dict[str, Any] = {
            "lr": self.settings.lr,
            "weight_decay": self.settings.weight_decay,
        }
        trained = [p for p in self.parameters() if p.requires_grad]
        optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(trained, momentum=self.settings.momentum, **rate)
            if self.settings.name == "sgd"
            else torch.optim.AdamW(trained, **rate)
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: rate_factor(step / self.total, self.settings)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Pictures and labels to the device; presence stays, it steers."""
        moved = {
            part: {k: v.to(device, non_blocking=True) for k, v in batch[part].items()}
            for part in ("images", "target")
        }
        return {**batch, **moved}  # type: ignore[typeddict-item]


def rate_factor(done: float, settings: FitSettings) -> float:
    """Factor of the learning rate.

    Args:
        done: share of the training that is done, in [0, 1].
        settings: with a schedule.
    """
    if settings.schedule == "steps":
        return 0.1 ** sum(done >= milestone for milestone in settings.milestones)
    return (1 - min(1.0, done)) ** 0.9 if settings.schedule == "poly" else 1.0


class _EpochLines(Callback):
    """Loss of each epoch, to `metrics.csv` and the terminal; a non-finite one stops the run."""

    def __init__(self, folder: RunFolder, console: Console) -> None:
        self.folder, self.console = folder, console
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, Trainee)
        epoch = trainer.current_epoch + 1
        loss = float(torch.stack(pl_module.losses).mean())
        pl_module.losses.clear()
        if not math.isfinite(loss):
            settings = pl_module.settings
            raise DivergedError(
                f"non-finite loss in epoch {epoch}: lower fit.lr (it is {settings.lr:g} of "
                f"{settings.name})"
            )
        self.rows.append({"epoch": epoch, "step": trainer.global_step, "loss": loss})
        write_metrics(self.folder, self.rows)
        last = trainer.max_epochs or -1
        if last < 0 or epoch == last or epoch % max(1, last // LINES) == 0:
            self.console.print(f"epoch {epoch}  loss {loss:.4g}", highlight=False)


def image_loader(
    data: PairedDataset,
    rows: Rows,
    task: Task,
    modalities: Sequence[str],
    settings: LoaderSettings,
    seed: int | None = None,
) -> DataLoader[Batch]:
    """Batches of some samples of a data set.

    Args:
        data: the data set.
        rows: which samples.
        task: whose label is loaded.
        modalities: which sensors are.
        settings: batches and workers.
        seed: of a random order; None: in order, every sample.

    Raises:
        ConfigError: if training is left with a single sample.
    """
    batch = min(settings.batch_size, len(rows))
    if seed is not None and len(rows) < 2:
        raise ConfigError("label_fraction: training needs 2 samples or more; raise it")
    workers = settings.processes()
    return DataLoader(
        Subset(SkipBad(data), rows.tolist()),  # type: ignore[arg-type]
        batch_size=batch,
        shuffle=seed is not None,
        # batch statistics need two samples
        drop_last=seed is not None and batch > 1 and len(rows) % batch == 1,
        collate_fn=Collate(
            {name: data.modalities[name] for name in modalities},
            {task.name: task.target},
        ),
        num_workers=workers,
        persistent_workers=workers > 0 and seed is not None,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed or 0),
    )


class Engine:
    """Where training and testing run.

    Args:
        folder: of the run.
        console: where the lines of epochs go.
        device: "auto", "cpu" or "cuda".
        precision: as Lightning names it.

    Raises:
        ConfigError: if there is no such device.
    """

    def __init__(
        self, folder: RunFolder, console: Console, device: str = "auto", precision: str = "32-true"
    ) -> None:
        if device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device: cuda is not there; use cpu or auto")
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.folder, self.console, self.device, self.precision = folder, console, device, precision

    def _trainer(self, **options: Any) -> L.Trainer:
        return L.Trainer(
            accelerator="gpu" if self.device == "cuda" else "cpu",
            devices=1,
            precision=self.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=sys.stdout.isatty(),
            **options,
        )

    def fit(self, trainee: Trainee, loader: DataLoader[Any]) -> None:
        """Train; the model ends on the CPU in eval mode.

        Raises:
            DivergedError: if the loss is not finite.
        """
        settings = trainee.settings
        length: dict[str, Any] = (
            {"max_epochs": -1, "max_steps": settings.steps}
            if settings.steps
            else {"max_epochs": settings.epochs}
        )
        lines = _EpochLines(self.folder, self.console)
        trainee.train()  # Lightning leaves eval mode as it finds it; frozen encoders stay in it
        warnings.filterwarnings("ignore", ".*in eval mode at the start of training.*")
        self._trainer(**length, callbacks=[lines]).fit(trainee, loader)
        trainee.model.cpu().eval()

    def test(self, trainee: Trainee, loader: DataLoader[Any], samples: int) -> Kept:
        """Run over the test part; one row a sample, in its order."""
        trainee.samples = samples
        parts = self._trainer().predict(trainee, loader) or []
        trainee.model.cpu()
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def steps_of(settings: FitSettings, loader: DataLoader[Any]) -> int:
    """Optimiser steps of the whole training."""
    assert settings.epochs is not None
    return settings.steps or settings.epochs * len(loader)
