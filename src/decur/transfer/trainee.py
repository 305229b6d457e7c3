"""A model and a task as Lightning trains and tests them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from decur.data import Batch
from decur.data.files import resize_mask
from decur.devices import send_batch
from decur.digest import digest
from decur.encoders import AdaptedEncoder, Encoder, ProjectedEncoder
from decur.encoders.timm_models import TimmEncoder
from decur.errors import ConfigError
from decur.features import scaled
from decur.modality import Modality
from decur.pretrain.optim import can_fuse
from decur.transfer.augment import Averaging, crop_and_flip, mean_colour, scale_and_flip
from decur.transfer.settings import FitSettings
from decur.transfer.tasks import Kept, Task
from decur.views import sample_seeds

_STAGE = re.compile(r"(?:patch_embed|block|norm)(\d)\.")  # of a Mix Transformer


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
                x = scaled(x, self.modalities[name], size=self.size)
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
        return self.task.keep(output, labels, samples=self.samples)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD or AdamW over what is trained, its rate a function of the step."""
        groups = fine_tuning_groups(self.model, self.settings)
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


# -- which rate and which decay each parameter gets ------------------------------------------------


def fine_tuning_groups(model: nn.Module, settings: FitSettings) -> list[dict[str, Any]]:
    """Return the trained parameters of a model in groups of one learning rate and one decay.

    Args:
        model: its encoders, wherever they are, are told from the rest, which is the head.
        settings: complete ones.

    Returns:
        Groups as an optimiser of torch takes them; a single one where all are treated alike.

    Raises:
        ConfigError: for a decay by layers of an encoder whose layers are not known.
    """
    assert settings.lr is not None and settings.weight_decay is not None
    factors = _encoder_factors(model, settings.layer_decay)
    rate_of_head = settings.lr if settings.head_lr is None else settings.head_lr
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        factor = factors.get(id(parameter))
        rate = rate_of_head if factor is None else settings.lr * factor
        spared = not settings.decay_biases and parameter.ndim < 2
        groups.setdefault((rate, 0.0 if spared else settings.weight_decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]


def _encoder_factors(model: nn.Module, decay: float) -> dict[int, float]:
    """Return the factor of the rate of each parameter of an encoder, by its id."""
    factors: dict[int, float] = {}
    for module in model.modules():
        if isinstance(module, Encoder) and not isinstance(
            module, AdaptedEncoder | ProjectedEncoder
        ):
            depths = _depths(module) if decay != 1 else {}
            last = max(depths.values(), default=0)
            for name, parameter in module.named_parameters():
                factors[id(parameter)] = decay ** (1 + last - depths[name]) if depths else 1.0
    return factors


def _depths(encoder: Encoder) -> dict[str, int]:
    """Return the number of the layer of each parameter, from the picture on."""
    names = [name for name, _ in encoder.named_parameters()]
    if isinstance(encoder, TimmEncoder):
        from timm.models import group_parameters

        matcher = encoder.backbone.group_matcher(coarse=False)
        found: dict[str, int] = group_parameters(encoder.backbone, matcher, reverse=True)
        return _with_attention(
            {name: found[name.removeprefix("backbone.")] for name in names},
            [f"backbone.{stage}." for stage in encoder.options.get("attention", {})],
        )
    stages = {name: match for name in names if (match := _STAGE.match(name))}
    if len(stages) < len(names):
        raise ConfigError(
            f"fit.layer_decay: the layers of encoder {encoder.name!r} are not known; leave it out"
        )
    return {name: int(match[1]) for name, match in stages.items()}


def _with_attention(depths: Mapping[str, int], stages: Sequence[str]) -> dict[str, int]:
    """Return the depths of a network's parameters, attention as deep as the end of its stage.

    timm knows no attention, and puts it behind all layers, which makes the others too shallow.

    Args:
        depths: by timm.
        stages: beginnings of the names of parameters in stages that end in an attention.
    """
    attention = {
        name for name in depths for stage in stages if name.startswith(f"{stage}attention.")
    }
    own = {name: depth for name, depth in depths.items() if name not in attention}
    numbers = {depth: number for number, depth in enumerate(sorted(set(own.values())))}
    found = {name: numbers[depth] for name, depth in own.items()}
    for stage in stages:
        last = max(found[name] for name in own if name.startswith(stage))
        found |= {name: last for name in attention if name.startswith(stage)}
    return found
