"""`decur bench step`: a training step of a configuration, whole and by its parts.

The whole step runs as `decur pretrain` runs it (Lightning, precision, memory layout, compilation),
without the run's log, progress bar and checkpoints, at a learning rate of zero, so that all steps
are alike. Nothing waits for the device within it, and nothing between steps but what the step
itself waits for. Its parts are measured in passes of their own, in which the device is waited for
after each part: they show where the time goes, and their sum is more than the whole step takes,
the more so where the device works while the next part is prepared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from decur.bench.clock import PARTS, WatchedPretrainer
from decur.bench.data import endless
from decur.bench.device import Rates, measure_device
from decur.bench.floors import StepCost
from decur.bench.passes import Passes
from decur.bench.timing import Row, Timing
from decur.bench.traffic import traffic
from decur.data import LoaderSettings, PairedDataset
from decur.encoders import EncoderSettings
from decur.objectives import Objective
from decur.pretrain.compiling import Compile
from decur.pretrain.settings import OptimizerSettings, ProjectorSettings, ViewSettings
from decur.pretrain.trainer import quiet_lightning, refuse_accumulation, seed_everything

ARITHMETIC = ("encoders", "projectors", "backward")
WORLDS = (2, 8, 64)  # numbers of processes that traffic is counted for


@dataclass(frozen=True)
class StepBench:
    """A step, and where its time goes.

    Args:
        real: the whole step, then its parts, with batches from the loader.
        fixed: the same with one batch that is in memory, over and over.
        traffic: `{number of processes: bytes that each sends in a step}`, see `traffic`.
        rates: of the device: in "float32", and as the "network" computes.
    """

    real: list[Row]
    fixed: list[Row]
    traffic: dict[int, dict[str, int]]
    rates: dict[str, Rates]

    @property
    def loading(self) -> float:
        """Time of the step with real loading over that with one batch: 1 if loading costs none."""
        return self.real[0].time.median / self.fixed[0].time.median

    @property
    def arithmetic(self) -> tuple[float, float]:
        """Share of encoders and projectors, forward and backward, in `real` and in `fixed`."""
        real, fixed = (
            sum(row.share or 0.0 for row in rows if row.name in ARITHMETIC)
            for rows in (self.real, self.fixed)
        )
        return real, fixed

    @property
    def watching(self) -> float:
        """Time of all parts over that of the whole step: what waiting for the device costs."""
        return sum(row.time.median for row in self.fixed[1:]) / self.fixed[0].time.median


def bench_step(
    data: PairedDataset,
    objective: Objective,
    encoder: EncoderSettings | None = None,
    projector: ProjectorSettings | None = None,
    views: ViewSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    loader: LoaderSettings | None = None,
    *,
    seed: int = 0,
    channels_last: bool = True,
    compile: Compile = "auto",
    monitor_batches: int = 16,
    trainer: dict[str, Any] | None = None,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
    trace: str | Path | None = None,
    rates: Rates | None = None,
) -> StepBench:
    """Measure a training step on one device.

    Args:
        data: what is trained on.
        objective: the method.
        encoder: backbones.
        projector: projectors; by default as wide as the objective expects.
        views: augmented views.
        optimizer: optimiser.
        loader: the batch, all of it on this device, and workers.
        seed: of weights, order and views.
        channels_last: see `Pretrainer`.
        compile: see `Pretrainer`; "auto" decides as for a long run.
        monitor_batches: see `Pretrainer`.
        trainer: options of Lightning's Trainer; those that concern a step on one device count.
        device: that trains.
        seconds: how long each of four passes takes, steps to warm up not counted.
        trace: JSON file for a profile of a few steps, for Perfetto or chrome://tracing.
        rates: of the device in float32; None: measured.

    Raises:
        ConfigError: if the configuration cannot be run, or the trace not be written.
    """
    device = torch.device(device)
    loader, optimizer = loader or LoaderSettings(), optimizer or OptimizerSettings()
    quiet_lightning()
    refuse_accumulation(trainer or {}, objective)
    seed_everything(seed)
    model = WatchedPretrainer(
        data.modalities,
        objective,
        encoder or EncoderSettings(),
        projector,
        views,
        dataclasses.replace(optimizer, lr=0.0, lr_bias=0.0),
        batch_size=loader.batch_size,
        seed=seed,
        channels_last=channels_last,
        compile=compile,
        monitor_batches=monitor_batches,
    )
    run = Passes(model, trainer or {}, device, seconds, len(data) // loader.batch_size)
    with contextlib.closing(endless(data, loader, seed)) as stream:
        first = next(stream)
        cost = StepCost(model, first, device, run.precision)
        fixed = itertools.repeat(first)
        whole = [run.whole(batches) for batches in (stream, fixed)]
        parts = [run.parts(batches) for batches in (stream, fixed)]
        memory, state = run.memory(fixed, trace)
    calibration = min(1.0, seconds)
    plain = rates or measure_device(device, torch.float32, calibration)
    network = plain
    if cost.dtype != torch.float32 or device.type == "cuda":
        network = measure_device(device, cost.dtype, calibration, convolutions=True)
    floors = cost.floors(state, plain, network)
    real, still = (
        _rows(time, steps, len(first["ids"]), floors, memory)
        for time, steps in zip(whole, parts, strict=True)
    )
    sent = {
        world: traffic(
            objective.dim,
            len(data.modalities),
            loader.batch_size * world,
            cost.parameters,
            world,
            cost.views,
        )
        for world in WORLDS
    }
    return StepBench(real, still, sent, {"float32": plain, "network": network})


def _rows(
    whole: Timing,
    steps: list[dict[str, float]],
    pairs: int,
    floors: dict[str, tuple[int, int, float]],
    memory: int,
) -> list[Row]:
    operations, moved, floor = (sum(column) for column in zip(*floors.values(), strict=True))
    total = sum(sum(step.values()) for step in steps)
    rows = [Row("step", pairs, whole, memory, int(operations), int(moved), floor)]
    for part in PARTS:
        times = [step[part] for step in steps]
        counted, bytes_, least = floors.get(part, (0, 0, 0.0))
        share = sum(times) / total
        time_ = Timing.of(times)
        rows.append(Row(part, pairs, time_, None, counted, bytes_, least or None, share))
    return rows
