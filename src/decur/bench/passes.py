"""Passes of a few training steps through Lightning, each with something else in mind."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.profiler import ProfilerActivity, profile

from decur.bench.clock import Clock, Watch, WatchedPretrainer
from decur.bench.device import wait
from decur.bench.timing import LEAST, Timing, peak_of
from decur.data import Batch
from decur.errors import ConfigError

WARM = 3  # steps that do not count: libraries choose algorithms, memory is taken, code compiled
_TRACED = 2  # steps of a profile
_ENDLESS = 10**6  # epochs of a pass that time ends
# Of the Trainer's options those that change what a step computes.
_KEPT = (
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("benchmark", "deterministic", "detect_anomaly"),
)


class Passes:
    """Fits of a few steps each, on one device.

    Args:
        model: what is trained.
        options: of Lightning's Trainer; those that change what a step computes are taken.
        device: that trains.
        seconds: how long a pass takes, `WARM` steps not counted.
        steps: in an epoch; on some of its batches more is monitored.
    """

    def __init__(
        self,
        model: WatchedPretrainer,
        options: dict[str, Any],
        device: torch.device,
        seconds: float,
        steps: int,
    ) -> None:
        self.model, self.device, self.seconds, self.steps = model, device, seconds, steps
        self.options = {key: options[key] for key in _KEPT if options.get(key) is not None}
        self.precision = str(self.options.get("precision", "32-true"))

    def whole(self, batches: Iterator[Batch]) -> Timing:
        """Time of whole steps."""
        steps = _Steps(self.device, self.seconds)
        self._fit(batches, steps)
        return Timing.of(steps.times())

    def parts(self, batches: Iterator[Batch]) -> list[dict[str, float]]:
        """Seconds of each part, step by step."""
        clock = Clock(self.device)
        with self.model.watched(clock):
            self._fit(batches, Watch(clock), _Steps(self.device, self.seconds), clock=clock)
        return clock.steps[WARM:]

    def memory(
        self, batches: Iterator[Batch], trace: str | Path | None
    ) -> tuple[int, torch.optim.Optimizer]:
        """Peak of a step, weights, gradients and state included; and the optimiser."""
        watch = _Memory(self.device, trace)
        self._fit(batches, watch)
        assert watch.optimizer is not None
        return watch.peak, watch.optimizer

    def _fit(
        self, batches: Iterator[Batch], *callbacks: L.Callback, clock: Clock | None = None
    ) -> None:
        gpu = self.device.type == "cuda"
        try:
            engine = L.Trainer(
                **self.options,
                accelerator="gpu" if gpu else self.device.type,
                devices=[self.device.index or 0] if gpu else 1,
                max_epochs=_ENDLESS,
                logger=False,
                callbacks=list(callbacks),
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
            )
        except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
        engine.fit(self.model, _Epochs(batches, clock, self.steps))
        self.model.check_finite()
        self.model.meter.reset()


class _Epochs:
    """Batches for one pass, an epoch at a time."""

    def __init__(self, batches: Iterator[Batch], clock: Clock | None, steps: int) -> None:
        self.batches, self.clock, self.steps = batches, clock, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.steps):
            with contextlib.nullcontext() if self.clock is None else self.clock.part("loading"):
                batch = next(self.batches)
            yield batch


class _Steps(L.Callback):
    """When each step ended: on a GPU by its own clock, without waiting for it."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.ends: list[Any] = []
        self._started, self._steps = 0.0, 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self._steps += 1
        if self._steps < WARM:
            return
        if not self.ends:
            wait(self.device)
            self._started = time.perf_counter()
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record(torch.cuda.current_stream(self.device))
            self.ends.append(event)
        else:
            self.ends.append(time.perf_counter())
        late = time.perf_counter() - self._started >= self.seconds
        if late and len(self.ends) > LEAST:
            trainer.should_stop = True

    def times(self) -> list[float]:
        wait(self.device)
        if self.device.type == "cuda":
            return [a.elapsed_time(b) / 1e3 for a, b in itertools.pairwise(self.ends)]
        return [b - a for a, b in itertools.pairwise(self.ends)]


@dataclass
class _Memory(L.Callback):
    """Peak memory of some steps after `WARM`, and what a profiler saw of them."""

    device: torch.device
    trace: str | Path | None
    peak: int = 0
    optimizer: torch.optim.Optimizer | None = None
    _seen: profile | None = field(default=None)
    _steps: int = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, model: L.LightningModule, batch: Any, index: int
    ) -> None:
        self._steps += 1
        if self._steps != WARM + 1:
            return
        wait(self.device)
        gpu = self.device.type == "cuda"
        if gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        if gpu and self.trace is None:
            return
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
        self._seen = profile(activities=kinds, profile_memory=True, acc_events=True)
        self._seen.__enter__()

    def on_train_batch_end(
        self, trainer: L.Trainer, model: L.LightningModule, out: Any, batch: Any, index: int
    ) -> None:
        if self._steps != WARM + _TRACED:
            return
        wait(self.device)
        trainer.should_stop = True
        self.optimizer = trainer.optimizers[0]
        if self._seen is not None:
            self._seen.__exit__(None, None, None)
        if self.device.type == "cuda":
            self.peak = torch.cuda.max_memory_allocated(self.device)
        else:
            assert self._seen is not None
            self.peak = peak_of(self._seen) + _held(model, self.optimizer)
        if self.trace is not None and self._seen is not None:
            export(self._seen, self.trace)


def _held(model: L.LightningModule, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that are there before a step, but for gradients: a profile counts its own."""
    weights = [*model.parameters(), *model.buffers()]
    state = [x for entry in optimizer.state.values() for x in entry.values()]
    return sum(x.nbytes for x in (*weights, *state) if isinstance(x, torch.Tensor))


def export(seen: profile, path: str | Path) -> None:
    """Write a profile for Perfetto or chrome://tracing.

    Raises:
        ConfigError: if the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        seen.export_chrome_trace(str(path))
    except (OSError, RuntimeError) as error:
        raise ConfigError(f"--profile {path}: cannot be written ({error})") from error
