"""The training step: a batch to views, to embeddings, to the loss of the objective."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from decur.data.sample import Batch
from decur.devices import send, send_batch
from decur.encoders import Encoder, EncoderSettings
from decur.encoders.attention import encode
from decur.encoders.base import refuse_name, refuse_size
from decur.encoders.checkpointing import batch_statistics
from decur.encoders.own import Own, encoder_settings
from decur.errors import ConfigError
from decur.modality import Modality
from decur.objectives import Objective
from decur.objectives.alignment import alignment
from decur.pretrain.batchnorm import finite_statistics, normalise_parts, synchronise
from decur.pretrain.compiling import Networks, StepStart, pays
from decur.pretrain.data import PairedData
from decur.pretrain.distributed import (
    average_gradients,
    shard,
    stand_ins,
    zero_gradients,
)
from decur.pretrain.metrics import Divergence, Meter, refuse_non_finite_weights, spreads
from decur.pretrain.optim import build_optimizer, cosine_with_warmup
from decur.pretrain.settings import (
    Compile,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)
from decur.pretrain.state import refuse_other_architecture
from decur.pretrain.trainer import quiet_advice, training_length
from decur.views import sample_seeds


class Pretrainer(L.LightningModule):
    """An encoder and a projector for each sensor, trained with one objective (DeCUR, Fig. 2).

    Args:
        modalities: `{name: Modality}` of the data.
        objective: any of `decur.objectives`, for embeddings as wide as the projector's.
        encoder: an encoder's name, a function of the modality, settings, or for each modality a
            name, a function or a network, which is copied (see `register_encoder`).
        projector: settings; by default as wide as the objective expects.
        views: settings; by default 224-px views.
        optimizer: settings; by default LARS as in the paper.
        batch_size: over all processes; only for `optimizer.scale_lr`.
        seed: of views and dropout.
        channels_last: keep pictures with their channels innermost, which ConvNets like.
        compile: run encoders and projectors through `torch.compile`; "auto": where it pays, see
            `decur.pretrain.compiling.pays`.
        monitor_batches: how many batches of each epoch the correlations are computed on.
        max_steps: optimiser steps after which to stop, also in the midst of an epoch.

    Raises:
        ConfigError: if the objective's width is not the projector's, or a name cannot be used.

    Examples:
        >>> from decur.data import SyntheticScenes
        >>> from decur.objectives import DeCUR
        >>> scenes = SyntheticScenes(samples=64)
        >>> model = Pretrainer(scenes.modalities, DeCUR(dim=256), encoder="resnet18")
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        objective: Objective,
        *,
        encoder: str | Own | Mapping[str, str | Own] | EncoderSettings = "resnet50",
        projector: ProjectorSettings | None = None,
        views: ViewSettings | None = None,
        optimizer: OptimizerSettings | None = None,
        batch_size: int = 256,
        seed: int = 0,
        channels_last: bool = True,
        compile: Compile = "auto",
        monitor_batches: int = 16,
        max_steps: int | None = None,
    ) -> None:
        super().__init__()
        quiet_advice()
        encoder = encoder_settings(encoder)
        projector = projector or ProjectorSettings(width=objective.dim)
        views = views or ViewSettings()
        self.encoder_settings, self.projector_settings = encoder, projector
        self.view_settings = views
        self.modalities = dict(modalities)
        objective.check_modalities(list(self.modalities))
        self.objective = objective
        self.optimizer_settings = optimizer or OptimizerSettings()
        self.batch_size, self.seed, self.channels_last = batch_size, seed, channels_last
        self.monitor_batches, self.max_steps = monitor_batches, max_steps
        self.views = views.build(self.modalities, channels_last=channels_last)
        encoder.tell_unused(self.modalities)
        self.encoders = nn.ModuleDict()
        self.projectors = nn.ModuleDict()
        for name, modality in self.modalities.items():
            refuse_name(name)
            built = encoder.build(name, modality)
            refuse_size(built, modality, size=self.views.size)
            head = projector.build(built.dim)
            if head.dim != objective.dim:
                raise ConfigError(
                    f"projector: embeddings of {name!r} have width {head.dim}, the objective "
                    f"expects {objective.dim}; set projector.width to {head.dim}"
                )
            self.encoders[name], self.projectors[name] = built, head
        if views.together:
            synchronise(self.encoders, "views.together")
            synchronise(self.projectors, "views.together")
        self._normalise_views()
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.compile_networks = compile
        self._recomputes = encoder.checkpointing
        self._statistics: list[tuple[Tensor, Tensor]] = []
        self._called: Networks | None = None
        self._start: tuple[StepStart, Meter] | None = None  # of a step that may be done again
        self._steps = 0  # of the whole run, known once the optimiser is made
        # Who hears of loss and terms through Lightning's `self.log`: loggers and callbacks, or
        # callbacks alone where `decur pretrain` tells loggers more.
        self.log_to: Literal["loggers", "callbacks"] | None = "loggers"
        self.meter = Meter()
        self.divergence = Divergence()

    def encoder(self, modality: str) -> Encoder:
        """Return the encoder of one sensor."""
        found = self.encoders[modality]
        assert isinstance(found, Encoder)
        return found

    def embed(
        self, images: Mapping[str, Tensor], present: Mapping[str, Tensor] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return features and embeddings of pictures, without augmentation.

        Args:
            images: `{name: (n, C, H, W)}` in [0, 1], of any of the modalities.
            present: `{name: (B,) bool}` on the CPU: which samples of the batch the n pictures
                belong to; None: all of them.

        Returns:
            `{name: (n, D)}` from the encoders and `{name: (n, K)}` from the projectors.
        """
        pictures = {name: self._layout(x) for name, x in images.items()}
        features = encode(self.encoders, pictures, present=present)
        return features, {name: self.projectors[name](h) for name, h in features.items()}

    def make_views(self, batch: Batch, epoch: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the two views of each modality that training sees in an epoch.

        Args:
            batch: raw values, on any device.
            epoch: views are a function of (seed, epoch, sample id).

        Returns:
            `{name: two tensors (B, C, size, size)}` in [0, 1].
        """
        images = {name: m.scale(batch["images"][name]) for name, m in self.modalities.items()}
        views: dict[str, tuple[Tensor, Tensor]] = self.views(
            images, sample_seeds(batch["ids"], self.seed, epoch=epoch)
        )
        return views

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor | None:
        """Return the loss of one batch; None where no sample of it can be used."""
        if self._networks().unproven:
            self._start = StepStart(self, batch, batch_idx), copy.deepcopy(self.meter)
        views = self.make_views(batch, self.current_epoch)
        embeddings, present = self._embed_views(views, batch["present"])
        complete = all(bool(has.all()) for has in present.values())
        terms = self.objective(embeddings, None if complete else present)
        self._measure(terms, embeddings, present, batch_idx)
        loss: Tensor = terms["loss"]
        return loss if loss.requires_grad else None

    def _embed_views(
        self, views: Mapping[str, tuple[Tensor, Tensor]], present: Mapping[str, Tensor]
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
        """Embed the samples that have a modality: the others must not touch batch statistics.

        A modality of which a process that trains alone has fewer than two samples counts as absent
        from the whole batch: batch statistics need two.

        Args:
            views: `{name: two tensors (B, C, size, size)}`.
            present: `{name: (B,) bool}`, which stays on the CPU, so that nothing waits for the
                device.

        Returns:
            `{name: two tensors (B, K)}`, zeros where the modality is absent, and which samples
            have it now.
        """
        absent = {name for name, has in present.items() if self._alone and int(has.sum()) < 2}
        present = {n: torch.zeros_like(has) if n in absent else has for n, has in present.items()}
        rows = {  # samples that have a modality, where not all have it: (n,)
            name: send(has.nonzero()[:, 0], self.device)
            for name, has in present.items()
            if not bool(has.all())
        }
        partial = {name: index for name, index in rows.items() if name not in absent}
        stand_in = stand_ins(self.encoders, partial)
        too_few = [name for name, index in partial.items() if len(index) < 2]
        encoders, projectors = self._networks().of(rows)
        found: dict[str, list[Tensor]] = {name: [] for name in views}
        with finite_statistics(part[name] for name in too_few for part in (encoders, projectors)):
            for step in ((0, 1),) if self.view_settings.together else ((0,), (1,)):
                images = {}
                for name in (n for n in views if n not in absent):
                    chosen = [
                        _choose(views[name][view], rows.get(name), name in stand_in)
                        for view in step
                    ]  # (n, C, size, size) each
                    images[name] = self._layout(torch.cat(chosen) if len(step) > 1 else chosen[0])
                those = {name: has.repeat(len(step)) for name, has in present.items()}
                for name, h in encode(encoders, images, present=those).items():
                    z = projectors[name](h[:0] if name in stand_in else h)  # (V n, K)
                    for own in z.view(len(step), len(z) // len(step), z.shape[1]).unbind():
                        if name in rows:
                            everyone = own.new_zeros(len(present[name]), own.shape[1])  # (B, K)
                            own = everyone.index_copy(0, rows[name], own)
                        found[name].append(own)
        for name in absent:
            zeros = torch.zeros(len(present[name]), self.objective.dim, device=self.device)
            zeros = zeros + zero_gradients((self.encoders[name], self.projectors[name]), zeros)
            found[name] = [zeros, zeros]
        return {name: (first, second) for name, (first, second) in found.items()}, present

    def _networks(self) -> Networks:
        """Return encoders and projectors as a step calls them; the first step decides how."""
        if self._called is None:
            chosen = self.compile_networks
            if chosen == "auto":
                chosen = self._alone and not self.is_sharded and pays(self.device, self._steps)
            self._called = Networks(self.encoders, self.projectors, chosen)
        return self._called

    @property
    def _alone(self) -> bool:
        """Whether this is the only process."""
        return self._trainer is None or self.trainer.world_size == 1

    def _layout(self, x: Tensor) -> Tensor:
        """Return pictures in the type and memory format of the weights."""
        if self.dtype not in (torch.float32, x.dtype):  # trainer.precision "bf16-true" or such
            x = x.to(self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    # -- measuring ------------------------------------------------------------------------------

    def _measure(
        self,
        terms: Mapping[str, Tensor],
        embeddings: Mapping[str, tuple[Tensor, Tensor]],
        present: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Add the values of a step to the epoch's means, and refuse a step that has gone wrong."""
        values = {name: value.detach().float() for name, value in terms.items()}
        step = f"step {self.global_step} (epoch {self.current_epoch})"
        self.divergence.watch(step, {**values, **spreads(embeddings, present)})
        normalised = self.objective.normalised_terms(values)
        self.meter.add({**values, **{f"{name}/dim": v for name, v in normalised.items()}})
        if self._trainer is not None and self.log_to:
            samples = len(next(iter(embeddings.values()))[0])
            options: dict[str, Any] = {
                "logger": self.log_to == "loggers" and bool(self.trainer.loggers),
                "on_epoch": True,
                "batch_size": samples,
            }
            self.log("loss", values.pop("loss"), on_step=True, **options)
            self.log_dict(values, on_step=False, **options)
        steps = int(self.trainer.num_training_batches) if self._trainer else 1
        if batch_idx % max(1, steps // max(1, self.monitor_batches)) == 0:
            self.meter.add(alignment(embeddings, self.objective.parts, present=present))

    def check_finite(self) -> None:
        """Refuse what earlier steps have computed, waiting for the device.

        Raises:
            DivergedError: naming the term of the loss.
        """
        self.divergence.check()

    # -- Lightning ------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and a cosine schedule over the steps of the whole run."""
        clips = bool(self.trainer.gradient_clip_val) and "mixed" in str(self.trainer.precision)
        optimizer = build_optimizer(self, self.optimizer_settings, self.batch_size, not clips)
        data = getattr(self.trainer, "datamodule", None)
        batches = data.steps_per_epoch if isinstance(data, PairedData) else None
        total, per_epoch = training_length(self.trainer, batches, self.max_steps)
        warmup = round(self.optimizer_settings.warmup_epochs * per_epoch)
        self._steps, self._called = total, None
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: cosine_with_warmup(step, total, warmup)
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_train_start(self) -> None:
        """Let a run that goes on longer follow its new schedule: the state holds the old rate."""
        for each in self.trainer.lr_scheduler_configs:
            schedule: Any = each.scheduler
            if not isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                continue
            rates = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
            groups = zip(schedule.optimizer.param_groups, rates, strict=True)
            for group, (base, factor) in groups:
                group["lr"] = base * factor(schedule.last_epoch)  # as it was in the same schedule

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """Move pictures to the device; presence and ids stay: nothing is computed with them.

        DDP would move what it finds in dictionaries and lists, and the host wait for the answer
        each time that it asks which samples have a sensor.
        """
        images, present = send_batch(batch["images"], device), MappingProxyType(batch["present"])
        return {**batch, "images": images, "present": present}

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout a function of (seed, epoch, step, rank); stop at `max_steps`."""
        if self._trainer is not None and self.max_steps is not None:
            # Lightning's max_steps does not go on rightly from the end of an epoch
            steps_now = (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0
            self.trainer.should_stop = steps_now and self.global_step + 1 >= self.max_steps
        self._seed_dropout(batch_idx)

    def _seed_dropout(self, batch_idx: int) -> None:
        """Seed the random numbers of the CPU and of every GPU for one step."""
        rank = 0 if self._trainer is None else self.global_rank
        key = f"{self.seed}/{self.current_epoch}/{batch_idx}/{rank}".encode()
        torch.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=7).digest(), "big"))

    def _normalise_views(self, parts: int = 2) -> None:
        """Let batch statistics be those of each view where both come together."""
        if self.view_settings.together:
            normalise_parts(self, parts)

    def on_fit_start(self) -> None:
        """Train, perhaps once more, on both views together."""
        self._normalise_views()

    def on_fit_end(self) -> None:
        """Leave networks that others may train on pictures that are no pairs of views."""
        self._normalise_views(parts=1)

    @property
    def is_sharded(self) -> bool:
        """Whether each process holds only a part of the weights (trainer.strategy fsdp)."""
        return getattr(self, "_device_mesh", None) is not None

    def configure_model(self) -> None:
        """Divide the weights among processes where the strategy asks for it."""
        if self.is_sharded:
            shard(self, self.encoders, self.projectors)

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Do the backward pass; where the compiler fails in the first one, do the step again.

        Raises:
            ConfigError: if it fails on several processes, which wait for each other's gradients.
        """
        try:
            super().backward(loss, *args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in many ways
            networks = self._networks()
            if self._start is None or not networks.unproven:
                raise
            if not self._alone:
                reason = " ".join(str(error).split())[:200]
                raise ConfigError(
                    f"compile: fails in the backward pass ({reason}); give --compile false"
                ) from error
            networks.give_up(error)
            super().backward(self._repeat_step(*self._start), *args, **kwargs)
        self._start, self._networks().unproven = None, False

    def _repeat_step(self, start: StepStart, meter: Meter) -> Tensor:
        """Return the loss of a step that is done again from its start."""
        start.restore()
        self._seed_dropout(start.batch_idx)
        self.meter.__dict__.update(meter.__dict__)
        precision: Any = self.trainer.precision_plugin
        with precision.train_step_context():
            loss = self.training_step(start.batch, start.batch_idx)
        assert loss is not None  # the same samples have given one before
        scaler = getattr(precision, "scaler", None)  # of 16-mixed
        return loss if scaler is None else scaler.scale(loss)

    def on_before_backward(self, loss: Tensor) -> None:
        """Keep batch statistics: layers that are computed again would update them twice."""
        if self._recomputes:
            self._statistics = [(b, b.clone()) for b in batch_statistics(self.encoders)]

    def on_after_backward(self) -> None:
        """Put batch statistics back; average gradients of what is too small to be divided."""
        for buffer, kept in self._statistics:
            buffer.copy_(kept)
        self._statistics = []
        if self.is_sharded:
            average_gradients(self.objective)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know of, and refuse to keep what a wrong step has left.

        Raises:
            DivergedError: if a loss or a weight is not finite.
        """
        self.check_finite()
        refuse_non_finite_weights(self, f"step {self.global_step} (epoch {self.current_epoch})")
        checkpoint["decur"] = {
            "meter": self.meter.whole(),
            "modalities": {name: m.to_dict() for name, m in self.modalities.items()},
            "encoders": {name: self.encoder(name).name for name in self.encoders},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the means of an epoch that was interrupted.

        Raises:
            ConfigError: if the checkpoint is of another architecture.
        """
        encoders = {name: self.encoder(name).name for name in self.encoders}
        refuse_other_architecture(checkpoint, encoders, self.state_dict())
        if self._trainer is None or self.trainer.is_global_zero:  # it is of all processes together
            self.meter.load_state_dict(checkpoint["decur"]["meter"])


def _choose(images: Tensor, rows: Tensor | None, stand_in: bool) -> Tensor:
    """Return the pictures of some samples; None: of all. A stand-in is any picture."""
    if stand_in:
        return images[:1]
    return images if rows is None else images.index_select(0, rows)
