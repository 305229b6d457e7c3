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
from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.autograd.graph import register_multi_grad_hook
from torch.utils.hooks import RemovableHandle

from decur.bench.data import batches
from decur.bench.measure import Pretraining, Row, counter, make_row, peak_memory
from decur.data import Batch
from decur.pretrain.module import Pretrainer
from decur.pretrain.run import make_model
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
    """Training steps of a pretraining on its device, at a learning rate of zero.

    Raises:
        ConfigError: if the configuration cannot be run.
    """

    def __init__(self, run: Pretraining) -> None:
        self.settings, self.device, settings = run.settings, run.device, run.settings
        options = settings.trainer.as_dict()
        self.options = {key: options[key] for key in _COMPUTING if options[key] is not None}
        quiet_lightning()
        refuse_accumulation(options, run.objective)
        seed_everything(settings.seed)
        # As many batches are monitored as in an epoch of the run, in one that never ends.
        epoch = len(run.data) // settings.loader.batch_size
        watched = ENDLESS // max(1, epoch // settings.monitor.batches)
        still = dataclasses.replace(
            settings,
            optimizer=dataclasses.replace(settings.optimizer, lr=0.0, lr_bias=0.0),
            monitor=dataclasses.replace(settings.monitor, batches=watched),
        )
        self.model = make_model(run.data, copy.deepcopy(run.objective), still)

    def train(self, batches: Iterable[Batch], clock: StepClock) -> list[dict[str, float]]:
        """Train under Lightning until the clock ends it; return the parts of the steps that count.

        Raises:
            ConfigError: if Lightning refuses an option.
        """
        gpu = self.device.type == "cuda"
        trainer = make_trainer(
            self.options,
            accelerator="gpu" if gpu else self.device.type,
            devices=[self.device.index or 0] if gpu else 1,
            max_epochs=1,
            limit_train_batches=ENDLESS,
            callbacks=[clock],
            float32_matmul=self.settings.float32_matmul,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        hooks = clock.watch(self.model) if clock.by_parts else []
        trainer.fit(self.model, batches)
        for hook in hooks:
            hook.remove()
        self.model.check_finite()
        self.model.meter.reset()
        return clock.steps[clock.warm_up :]

    def operations(self, batch: Batch) -> dict[str, int]:
        """Count the floating-point operations of each part of a step, which is not compiled."""
        self.model.compile_networks = False
        with counter() as counted:
            now = counted.get_total_flops
            clock = StepClock(self.device, least=1, warm_up=0, by_parts=True, now=now)
            (step,) = self.train(itertools.repeat(batch), clock)
        return {part: round(number) for part, number in step.items()}

    def peak(self, batch: Batch, trace: str | None = None) -> int:
        """Return the bytes of memory at the peak of two steps, and trace them to a JSON file."""
        parameters = list(self.model.parameters())  # which Lightning leaves on the CPU
        gradients = (p.grad for p in parameters if p.grad is not None)
        before = sum(x.nbytes for x in (*parameters, *self.model.buffers(), *gradients))
        clock = StepClock(self.device, least=2, warm_up=0)
        beyond = peak_memory(lambda: self.train(itertools.repeat(batch), clock), self.device, trace)
        return beyond if self.device.type == "cuda" else before + beyond


_never_compiled: Callable[..., Any] = torch.compiler.disable


def _end_of(part: str) -> Callable[..., None]:
    return lambda clock, *unused: clock.mark(part) if clock.by_parts else None


@dataclasses.dataclass(eq=False)
class StepClock(L.Callback):
    """Time steps, whole or by their parts, and end the training when there are enough."""

    device: torch.device  # that trains
    seconds: float = 0.0  # duration of all steps that count
    least: int = 5  # number of steps that count, however long they take
    warm_up: int = WARM_UP  # number of steps before them
    by_parts: bool = False  # whether to tell the parts, each of which ends by a wait for the device
    now: Callable[[], float] = time.perf_counter  # grows; is divided among the parts

    def __post_init__(self) -> None:
        self.steps: list[dict[str, float]] = []  # what each part took, step by step
        self._step, self._last, self._started = dict.fromkeys(PARTS, 0.0), self.now(), 0.0

    @_never_compiled
    def mark(self, part: str) -> None:
        """Give what has passed since the last mark to a part."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
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

    def watch(self, model: Pretrainer) -> list[RemovableHandle]:
        """Mark the parts of a model's forward pass, until the hooks returned are removed."""

        def end_of(part: str) -> Callable[..., None]:
            return lambda *unused: self.mark(part)

        def begin_loss(_: nn.Module, given: tuple[dict[str, tuple[Tensor, Tensor]], ...]) -> None:
            self.mark("other")
            embeddings = [z for views in given[0].values() for z in views]
            # The loss's backward pass ends at the first gradient of an embedding.
            register_multi_grad_hook(embeddings, end_of("loss"), mode="any")

        hooks = [
            model.views.register_forward_hook(end_of("views")),
            model.objective.register_forward_pre_hook(begin_loss),
            model.objective.register_forward_hook(end_of("loss")),
        ]
        for projector in model.projectors.values():
            hooks.append(projector.register_forward_pre_hook(end_of("encoders")))
            hooks.append(projector.register_forward_hook(end_of("projectors")))
        return hooks


def bench_step(
    run: Pretraining, best: float, seconds: float, trace: str | None = None
) -> dict[str, list[Row]]:
    """Measure a training step.

    Args:
        run: the pretraining; "auto" compiles as for a long run.
        best: operations a second of the device's best matrix product, see `matmul_rate`.
        seconds: duration of each of four passes, without the steps to warm up.
        trace: JSON file for a trace of two steps and their setup, for Perfetto or chrome://tracing.

    Returns:
        Rows for the whole step and for each of its parts: as "step" with batches from the loader,
        and as "step_fixed" with one batch that is in memory, over and over.

    Raises:
        ConfigError: if the configuration cannot be run.
    """
    steps, passes = Steps(run), {}
    with contextlib.closing(batches(run)) as stream:
        first = next(stream)
        for key, source in (("step", stream), ("step_fixed", itertools.repeat(first))):
            whole = steps.train(source, StepClock(run.device, seconds))
            parts = steps.train(source, StepClock(run.device, seconds, by_parts=True))
            passes[key] = whole, parts
    memory, operations = steps.peak(first, trace), steps.operations(first)

    def row(name: str, times: list[float], count: int, **more: Any) -> Row:
        floor = count / best or None
        return make_row(name, len(first["ids"]), times, operations=count, floor=floor, **more)

    found = {}
    for key, (whole, parts) in passes.items():
        times = [sum(step.values()) for step in whole]
        found[key] = [row("step", times, sum(operations.values()), memory=memory)]
        everything = sum(sum(step.values()) for step in parts)
        for part in PARTS:
            times = [step[part] for step in parts]
            found[key].append(row(part, times, operations[part], share=sum(times) / everything))
    return found
