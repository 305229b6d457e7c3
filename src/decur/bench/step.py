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
from typing import Any

import lightning as L
import torch
from torch import Tensor

from decur.bench.data import batches
from decur.bench.measure import Row, counter, peak_memory, wait
from decur.data import Batch, PairedDataset
from decur.errors import ConfigError
from decur.objectives.base import Objective
from decur.pretrain.run import make_model
from decur.pretrain.settings import PretrainSettings
from decur.pretrain.trainer import (
    make_trainer,
    quiet_lightning,
    refuse_accumulation,
    seed_everything,
)

# "loading" is the wait for a batch and its way to the device; "other" is what is monitored, the
# clipping of gradients, and all that has no name.
PARTS = ("loading", "views", "encoders", "projectors", "loss", "backward", "optimiser", "other")
WARM_UP = 3  # steps that do not count: libraries choose algorithms, memory is taken, code compiled
ENDLESS = 10**6  # steps of a training that a callback ends
# Options of Lightning's Trainer that change what a step computes.
_COMPUTING = {"precision", "gradient_clip_val", "gradient_clip_algorithm", "detect_anomaly"}
_COMPUTING |= {"accumulate_grad_batches", "benchmark", "deterministic"}


class Steps:
    """Training steps of a configuration on one device, at a learning rate of zero.

    Args:
        data: what is trained on.
        objective: the method.
        settings: all else that `decur pretrain` is told.
        device: that trains.

    Raises:
        ConfigError: if the configuration cannot be run.
    """

    def __init__(
        self,
        data: PairedDataset,
        objective: Objective,
        settings: PretrainSettings,
        device: torch.device,
    ) -> None:
        self.data, self.objective, self.settings, self.device = data, objective, settings, device
        options = settings.trainer.as_dict()
        self.options = {key: options[key] for key in _COMPUTING if options[key] is not None}
        quiet_lightning()
        refuse_accumulation(options, objective)
        seed_everything(settings.seed)
        # As many batches are monitored as in an epoch of the run, in one that never ends.
        epoch = len(data) // settings.loader.batch_size
        watched = ENDLESS // max(1, epoch // settings.monitor.batches)
        still = dataclasses.replace(
            settings,
            optimizer=dataclasses.replace(settings.optimizer, lr=0.0, lr_bias=0.0),
            monitor=dataclasses.replace(settings.monitor, batches=watched),
        )
        self.model = make_model(data, copy.deepcopy(objective), still)

    def run(self, batches: Iterable[Batch], clock: StepClock) -> list[dict[str, float]]:
        """Train under Lightning until the clock ends it; return the parts of the steps that count.

        Raises:
            ConfigError: if Lightning refuses an option, or the device has not the memory.
        """
        gpu = self.device.type == "cuda"
        trainer = make_trainer(
            self.options,
            accelerator="gpu" if gpu else self.device.type,
            devices=[self.device.index or 0] if gpu else 1,
            max_epochs=1,
            callbacks=[clock],
            use_distributed_sampler=False,
            float32_matmul=self.settings.float32_matmul,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(self.model, _Endless(batches))
        except torch.OutOfMemoryError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"{self.device} has not the memory for a step: {reason}") from error
        self.model.check_finite()
        self.model.meter.reset()
        return clock.steps[clock.warm_up :]

    def times(
        self, batches: Iterable[Batch], seconds: float, least: int = 5, warm_up: int = WARM_UP
    ) -> list[float]:
        """Return the seconds of each of some steps; see `StepClock`."""
        steps = self.run(batches, StepClock(self.device, seconds, least, warm_up))
        return [sum(step.values()) for step in steps]

    def parts(self, batches: Iterable[Batch], clock: StepClock) -> list[dict[str, float]]:
        """Return what each part takes, step by step, as a clock tells it."""
        model = self.model
        hooks = [
            model.views.register_forward_hook(lambda *_: clock.mark("views")),
            model.objective.register_forward_pre_hook(lambda _, given: clock.begin_loss(given[0])),
            model.objective.register_forward_hook(lambda *_: clock.mark("loss")),
        ]
        for projector in model.projectors.values():
            hooks.append(projector.register_forward_pre_hook(lambda *_: clock.mark("encoders")))
            hooks.append(projector.register_forward_hook(lambda *_: clock.mark("projectors")))
        clock.by_parts = True
        found = self.run(batches, clock)
        for hook in hooks:
            hook.remove()
        return found

    def operations(self, batch: Batch) -> dict[str, int]:
        """Count the floating-point operations of each part of a step, which is not compiled."""
        self.model.compile_networks = False
        with counter() as counted:
            clock = StepClock(self.device, 0.0, 1, 0, now=counted.get_total_flops)
            (step,) = self.parts(itertools.repeat(batch), clock)
        return {part: round(number) for part, number in step.items()}

    def peak(self, batch: Batch, trace: str | None = None) -> int:
        """Return the bytes of memory at the peak of a few steps, and trace them to a JSON file."""
        parameters = list(self.model.parameters())  # which Lightning leaves on the CPU
        gradients = (p.grad for p in parameters if p.grad is not None)
        before = sum(x.nbytes for x in (*parameters, *self.model.buffers(), *gradients))

        def work() -> None:
            self.times(itertools.repeat(batch), 0.0, least=2, warm_up=0)

        beyond = peak_memory(work, self.device, trace)
        return beyond if self.device.type == "cuda" else before + beyond


class _Endless:
    """Batches as Lightning takes them: an epoch that never ends."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


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

    on_train_batch_start = _end_of("loading")
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

    def begin_loss(self, embeddings: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Begin the loss, whose backward pass ends at the first of the embeddings."""
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


def bench_step(
    steps: Steps, rate: float, *, seconds: float = 3.0, trace: str | None = None
) -> tuple[list[Row], list[Row]]:
    """Measure a training step.

    Args:
        steps: of a configuration; "auto" compiles as for a long run.
        rate: operations a second of the device's best matrix product, see `matmul_rate`.
        seconds: duration of each of four passes, without the steps to warm up.
        trace: JSON file for a trace of two steps and their setup, for Perfetto or chrome://tracing.

    Returns:
        Rows for the whole step and for each of its parts, with batches from the loader; and the
        same with one batch that is in memory, over and over.

    Raises:
        ConfigError: if the configuration cannot be run, or the trace not be written.
    """
    settings, passes = steps.settings, []
    with contextlib.closing(batches(steps.data, settings.loader, settings.seed)) as stream:
        first = next(stream)
        for source in (stream, itertools.repeat(first)):
            whole = steps.times(source, seconds)
            passes.append((whole, steps.parts(source, StepClock(steps.device, seconds))))
    memory, operations = steps.peak(first, trace), steps.operations(first)
    pairs, total = len(first["ids"]), sum(operations.values())

    def rows(whole: list[float], parts: list[dict[str, float]]) -> list[Row]:
        found = [Row("step", pairs, whole, memory, total, total / rate)]
        everything = sum(sum(step.values()) for step in parts)
        for part in PARTS:
            times, floor = [step[part] for step in parts], operations[part] / rate or None
            share = sum(times) / everything
            found.append(Row(part, pairs, times, None, operations[part], floor, share))
        return found

    real, fixed = (rows(whole, parts) for whole, parts in passes)
    return real, fixed
