"""A training step, whole and by its parts, as `decur pretrain` runs it on one device.

The step runs under Lightning with the precision, memory layout and compilation of the run, without
its log and checkpoints, and at a learning rate of zero, so that all steps are alike. The device is
waited for at the end of each step, and in passes of their own at the end of each part: on a GPU the
parts add up to more than the whole step.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch
from jsonargparse import Namespace
from torch import Tensor

from decur.bench.data import batches
from decur.bench.measure import Row, counter, peak_memory, wait
from decur.data import Batch, LoaderSettings, PairedDataset
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.objectives import Objective
from decur.pretrain import Pretrainer
from decur.pretrain import settings as S
from decur.pretrain.trainer import (
    make_trainer,
    quiet_lightning,
    refuse_accumulation,
    seed_everything,
)

NETWORKS = ("encoders", "projectors", "backward")
# "other" is what is monitored, the clipping of gradients, and all that has no name.
PARTS = ("loading", "transfer", "views", *NETWORKS[:2], "loss", "backward", "optimiser", "other")
WARM_UP = 3  # steps that do not count: libraries choose algorithms, memory is taken, code compiled
ENDLESS = 10**6  # steps of a training that a callback ends
# Of the Trainer's options those that change what a step computes.
_COMPUTING = {"precision", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly"}
_COMPUTING |= {"accumulate_grad_batches", "benchmark", "deterministic"}


@dataclass
class Training:
    """The arguments of `pretrain` that decide what a step computes, by the same names."""

    data: PairedDataset
    objective: Objective
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    projector: S.ProjectorSettings | None = None
    views: S.ViewSettings = field(default_factory=S.ViewSettings)
    optimizer: S.OptimizerSettings = field(default_factory=S.OptimizerSettings)
    loader: LoaderSettings = field(default_factory=LoaderSettings)
    monitor: S.MonitorSettings = field(default_factory=S.MonitorSettings)
    trainer: dict[str, Any] = field(default_factory=dict)  # options of Lightning's Trainer
    seed: int = 0
    channels_last: bool = True
    compile: S.Compile = "auto"

    @classmethod
    def of(cls, data: PairedDataset, made: Namespace) -> Training:
        """Return what the options of `decur pretrain` describe."""
        options = {f.name: made[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**options, "data": data, "trainer": made.trainer.as_dict()})

    def build(self) -> TimedPretrainer:
        """Return a model that learns nothing: its learning rate is 0.

        Raises:
            ConfigError: if the configuration cannot be run.
        """
        quiet_lightning()
        refuse_accumulation(self.trainer, self.objective)
        seed_everything(self.seed)
        epoch = len(self.data) // self.loader.batch_size
        return TimedPretrainer(
            self.data.modalities,
            copy.deepcopy(self.objective),
            encoder=self.encoder,
            projector=self.projector,
            views=self.views,
            optimizer=dataclasses.replace(self.optimizer, lr=0.0, lr_bias=0.0),
            batch_size=self.loader.batch_size,
            seed=self.seed,
            channels_last=self.channels_last,
            compile=self.compile,
            # As many as in an epoch of the run, in one that never ends.
            monitor_batches=ENDLESS // max(1, epoch // self.monitor.batches),
        )


class TimedPretrainer(Pretrainer):
    """A `Pretrainer` that tells a clock, while it has one, which part it has come to."""

    clock: StepClock | None = None

    def make_views(self, batch: Batch, epoch: int) -> dict[str, tuple[Tensor, Tensor]]:
        """See `Pretrainer.make_views`."""
        with self.clock.part("views") if self.clock else contextlib.nullcontext():
            return super().make_views(batch, epoch)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, index: int) -> Batch:
        """See `Pretrainer.transfer_batch_to_device`."""
        with self.clock.part("transfer") if self.clock else contextlib.nullcontext():
            return super().transfer_batch_to_device(batch, device, index)


_never_compiled: Callable[..., Any] = torch.compiler.disable


def _end_of(part: str) -> Callable[..., None]:
    return lambda clock, *unused: clock.mark(part) if clock.by_parts else None


class StepClock(L.Callback):
    """Time steps, whole or by their parts, and end the training when there are enough.

    Args:
        device: that trains.
        seconds: duration of all steps that count.
        least: number of steps that count, however long they take.
        warm_up: number of steps before them.
        now: what is divided among the parts: seconds, or another number that grows.
    """

    def __init__(
        self,
        device: torch.device,
        seconds: float,
        least: int = 5,
        warm_up: int = WARM_UP,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.device, self.seconds, self.least = device, seconds, least
        self.warm_up, self.now, self.by_parts = warm_up, now, False
        self.steps: list[dict[str, float]] = []  # what each part took, step by step
        self._step, self._last, self._started = dict.fromkeys(PARTS, 0.0), now(), 0.0

    @_never_compiled
    def mark(self, part: str) -> None:
        """Give what has passed since the last mark to a part."""
        wait(self.device)
        now = self.now()
        self._step[part] += now - self._last
        self._last = now

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Give what passes in a block to a part, and what has passed before it to "other"."""
        self.mark("other")
        yield
        self.mark(name)

    on_before_zero_grad = _end_of("other")
    on_before_backward = _end_of("optimiser")  # which has cleared the gradients
    on_after_backward = _end_of("backward")
    on_before_optimizer_step = _end_of("other")

    def on_train_batch_end(self, trainer: L.Trainer, *unused: object) -> None:
        """End a step."""
        self.mark("optimiser")
        self.steps.append(self._step)
        self._step = dict.fromkeys(PARTS, 0.0)
        if len(self.steps) <= self.warm_up:
            self._started = time.perf_counter()
        is_late = time.perf_counter() - self._started >= self.seconds
        trainer.should_stop |= is_late and len(self.steps) >= self.warm_up + self.least

    @property
    def counted(self) -> list[dict[str, float]]:
        """What each part took in the steps that count."""
        return self.steps[self.warm_up :]

    @contextlib.contextmanager
    def watching(self, model: TimedPretrainer) -> Iterator[None]:
        """Time the parts of a model until the end of the block."""
        objective = model.objective
        hooks = [
            objective.register_forward_pre_hook(lambda _, given: self._begin_loss(given[0])),
            objective.register_forward_hook(lambda *_: self.mark("loss")),
        ]
        for projector in model.projectors.values():
            hooks.append(projector.register_forward_pre_hook(lambda *_: self.mark("encoders")))
            hooks.append(projector.register_forward_hook(lambda *_: self.mark("projectors")))
        model.clock, self.by_parts = self, True
        yield
        model.clock = None
        for hook in hooks:
            hook.remove()

    def _begin_loss(self, embeddings: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Begin the loss, and note when its backward pass ends: at the first of the embeddings."""
        self.mark("other")
        arrived: list[bool] = []

        def end_of_loss(gradient: Tensor) -> None:
            if not arrived:
                arrived.append(True)
                self.mark("loss")

        views: Any = itertools.chain.from_iterable(embeddings.values())
        for z in views:
            if z.requires_grad:
                z.register_hook(end_of_loss)


@dataclass
class _Endless:
    """Batches as Lightning takes them: an epoch that never ends."""

    batches: Iterator[Batch]
    callback: L.Callback

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        clock = self.callback if isinstance(self.callback, StepClock) else None
        while True:
            with clock.part("loading") if clock else contextlib.nullcontext():
                batch = next(self.batches)
            yield batch


def run_steps(
    model: Pretrainer,
    batches: Iterable[Batch],
    trainer: dict[str, Any],
    device: torch.device,
    callback: L.Callback,
) -> None:
    """Train under Lightning until a callback ends it.

    Of the options of Lightning's Trainer those count that change what a step computes.

    Raises:
        ConfigError: if Lightning refuses an option, or the device has not the memory.
    """
    gpu = device.type == "cuda"
    off = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    engine = make_trainer(
        {key: trainer[key] for key in _COMPUTING if trainer.get(key) is not None},
        accelerator="gpu" if gpu else device.type,
        devices=[device.index or 0] if gpu else 1,
        max_epochs=1,
        callbacks=[callback],
        use_distributed_sampler=False,
        **dict.fromkeys(off, False),
    )
    try:
        engine.fit(model, _Endless(iter(batches), callback))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{device} has not the memory for a step: {reason}") from error
    model.check_finite()
    model.meter.reset()


def count_parts(
    model: TimedPretrainer, batch: Batch, trainer: dict[str, Any], device: torch.device
) -> dict[str, int]:
    """Count the floating-point operations of each part of one step, which is not compiled."""
    model.compile_networks = False
    with counter() as counted:
        clock = StepClock(device, 0.0, least=1, warm_up=0, now=counted.get_total_flops)
        with clock.watching(model):
            run_steps(model, itertools.repeat(batch), trainer, device, clock)
    return {part: round(number) for part, number in clock.counted[0].items()}


def bench_step(
    training: Training,
    device: torch.device,
    rate: float,
    *,
    seconds: float = 3.0,
    trace: str | None = None,
) -> tuple[list[Row], list[Row]]:
    """Measure a training step on one device.

    Args:
        training: what is trained; "auto" compiles as for a long run.
        device: that trains.
        rate: operations a second of the device's best matrix product, see `matmul_rate`.
        seconds: duration of each of four passes, without the steps to warm up.
        trace: JSON file for a trace of two steps and their setup, for Perfetto or chrome://tracing.

    Returns:
        Rows for the whole step and for each of its parts, with batches from the loader; and the
        same with one batch that is in memory, over and over.

    Raises:
        ConfigError: if the configuration cannot be run, or the trace not be written.
    """
    model, options = training.build(), training.trainer
    clocks = []
    with contextlib.closing(batches(training.data, training.loader, training.seed)) as stream:
        first = next(stream)
        fixed = itertools.repeat(first)
        for source in (stream, fixed):
            whole, parts = StepClock(device, seconds), StepClock(device, seconds)
            run_steps(model, source, options, device, whole)
            with parts.watching(model):
                run_steps(model, source, options, device, parts)
            clocks.append((whole.counted, parts.counted))
    few = StepClock(device, 0.0, least=2, warm_up=0)
    weights = list(model.parameters())
    there = [*weights, *model.buffers(), *(p.grad for p in weights if p.grad is not None)]
    memory = sum(x.nbytes for x in there if x.device.type == device.type)
    memory += peak_memory(lambda: run_steps(model, fixed, options, device, few), device, trace)
    operations = count_parts(model, first, options, device)
    pairs, total = len(first["ids"]), sum(operations.values())

    def rows(whole: list[dict[str, float]], steps: list[dict[str, float]]) -> list[Row]:
        times = [sum(step.values()) for step in whole]
        everything = sum(sum(step.values()) for step in steps)
        found = [Row("step", pairs, times, memory, total, total / rate)]
        for part in PARTS:
            times, floor = [step[part] for step in steps], operations[part] / rate or None
            share = sum(times) / everything
            found.append(Row(part, pairs, times, None, operations[part], floor, share))
        return found

    return rows(*clocks[0]), rows(*clocks[1])
