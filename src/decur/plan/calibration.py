"""A few real training steps, from which a whole run is foreseen."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils._pytree import tree_leaves

from decur.bench.counting import Kept
from decur.bench.device import wait
from decur.data import Batch
from decur.errors import ConfigError, DataError
from decur.plan.reading import LEAST, tile
from decur.pretrain import Pretrainer

ENDLESS = 10**6  # steps of a fit that something else ends
_WARM = 2  # steps that do not count: libraries choose algorithms, memory is taken
_STEPS = 3  # that count, however long they take
_FEW = 16  # samples that a step should have, even where it takes long
# Of the Trainer's options those that change what a step computes.
_KEPT = (
    *("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches"),
    *("benchmark", "deterministic", "detect_anomaly"),
)


@dataclass(frozen=True)
class Calibration:
    """Real steps on one device.

    Args:
        steps: `(samples, seconds)` of two batch sizes, the smaller first; one where the batch
            cannot be smaller.
        peaks: bytes that the device's allocator gave out at most, for each; empty on a CPU.
        threads: that compute on a CPU; 0 on a GPU.
    """

    steps: tuple[tuple[int, float], ...]
    peaks: tuple[int, ...]
    threads: int

    def seconds(self, samples: float) -> float:
        """Of a step with another batch: a constant, and as much again for each sample."""
        fixed, each = self.line()
        return fixed + each * samples

    def line(self) -> tuple[float, float]:
        """Seconds of a step whatever the batch, and for each sample of it."""
        large, slow = self.steps[-1]
        small, fast = self.steps[0]
        each = (slow - fast) / (large - small) if large > small else slow / large
        if not 0 < each <= slow / large:  # two times that differ by chance
            each = slow / large
        return slow - each * large, each


def measure_activations(
    model: Pretrainer, batch: Batch, trainer: dict[str, Any], device: torch.device
) -> dict[int, int]:
    """Bytes that a real step keeps for its backward pass, for two sizes of batch.

    Views do not count.

    Args:
        model: whose parameters stay as they are where its learning rate is 0.
        batch: some samples.
        trainer: options of Lightning's Trainer; those count that concern a step on one device.
        device: that computes.

    Raises:
        ConfigError: if the device has not the memory.
        DataError: if no sample has enough sensors to be trained on.
    """
    sizes = (LEAST, 2 * LEAST)
    watch = _Keeping()
    _fit(model, [tile(batch, size) for size in sizes], trainer, device, watch)
    if len(watch.bytes) < len(sizes):
        raise DataError(f"the samples {', '.join(batch['ids'][:3])} ... are nothing to train on")
    return watch.bytes


def calibrate(
    model: Pretrainer,
    batch: Batch,
    sizes: Sequence[int],
    trainer: dict[str, Any],
    device: torch.device,
    seconds: float,
) -> Calibration:
    """Time real training steps with one fixed batch in memory.

    Args:
        model: whose parameters stay as they are where its learning rate is 0.
        batch: some samples.
        sizes: of the batches that may be tried, the smallest first. The largest is taken that
            steps fast enough, and a quarter of it.
        trainer: options of Lightning's Trainer; those count that concern a step on one device.
        device: that computes.
        seconds: how long it takes, about; a few steps are made in any case.

    Raises:
        ConfigError: if the device has not the memory.
    """

    def measure(size: int, least: float) -> _Timing:
        watch = _Timing(device, least)
        _fit(model, _same(tile(batch, size), watch), trainer, device, watch)
        return watch

    large = sizes[0]
    for size in sizes[1:]:
        soon = size / large * min(measure(large, 0.0).seconds) * (_WARM + _STEPS)  # at most
        # from few samples alone one would not see what a step takes whatever its batch
        if soon > (2 * seconds if size <= _FEW else seconds / 3):
            break
        large = size
    steps, peaks = [], []
    for size in dict.fromkeys((max(LEAST, large // 4), large)):
        watch = measure(size, seconds / 3)
        steps.append((size, statistics.median(watch.seconds)))
        peaks += [watch.peak] if device.type == "cuda" else []
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    return Calibration(tuple(steps), tuple(peaks), threads)


class _Batches:
    """Batches as Lightning wants them: it would take a list for several loaders."""

    def __init__(self, batches: Iterable[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return ENDLESS

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


def _same(batch: Batch, watch: _Timing) -> Iterator[Batch]:
    while not watch.done:
        yield batch


def _fit(
    model: Pretrainer,
    batches: Iterable[Batch],
    options: dict[str, Any],
    device: torch.device,
    watch: L.Callback,
) -> None:
    gpu = device.type == "cuda"
    try:
        engine = L.Trainer(
            **{key: options[key] for key in _KEPT if options.get(key) is not None},
            accelerator="gpu" if gpu else device.type,
            devices=[device.index or 0] if gpu else 1,
            max_epochs=1,
            logger=False,
            callbacks=[watch],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        raise ConfigError(f"trainer: {error}; see --trainer.* in --help") from error
    try:
        engine.fit(model, _Batches(batches))
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{device} has not the memory for a step: {reason}") from error


class _Timing(L.Callback):
    """Seconds of each step but the first ones, the way of its batch to the device included."""

    def __init__(self, device: torch.device, least: float) -> None:
        self.device, self.least = device, least
        self.seconds: list[float] = []
        self.done = False
        self._steps, self._last, self._start = 0, 0.0, 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        wait(self.device)
        now = time.perf_counter()
        self._steps += 1
        if self._steps > _WARM:
            self.seconds.append(now - self._last)
        elif self._steps == _WARM:
            self._start = now
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
        self._last = now
        self.done = len(self.seconds) >= _STEPS and now - self._start >= self.least

    @property
    def peak(self) -> int:
        """Bytes given out at most since the first steps."""
        return torch.cuda.max_memory_allocated(self.device)


class _Keeping(L.Callback):
    """What each step keeps for its backward pass, by the size of its batch."""

    def __init__(self) -> None:
        self.bytes: dict[int, int] = {}

    def on_train_batch_start(
        self, trainer: L.Trainer, model: L.LightningModule, batch: Batch, index: int
    ) -> None:
        assert isinstance(model, Pretrainer)
        self._samples = len(batch["ids"])
        self._kept = Kept([*model.parameters(), *model.buffers()])
        self._views = model.views.register_forward_hook(self._leave_out)
        self._kept.__enter__()

    def _leave_out(self, views: nn.Module, inputs: Any, outputs: Any) -> None:
        self._kept.leave_out(tree_leaves(outputs))

    def on_before_backward(self, *_: Any) -> None:
        self._views.remove()
        self._kept.__exit__()
        self.bytes[self._samples] = self._kept.bytes


def main_memory() -> int:
    """Bytes of this machine's main memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def device_memory(device: torch.device) -> int:
    """Bytes that a run may take on a device: what is free of a GPU, main memory of a CPU."""
    if device.type != "cuda":
        return main_memory()
    return torch.cuda.mem_get_info(device)[0]
