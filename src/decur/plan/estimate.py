"""From what was counted and measured to hours and gigabytes, on one device and on many."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from decur.bench.device import measure_device
from decur.bench.loss import cost as cost_of_loss
from decur.bench.loss import views_compared
from decur.bench.traffic import traffic
from decur.data import LoaderSettings, PairedDataset
from decur.data.selection import select
from decur.encoders import EncoderSettings
from decur.errors import ConfigError
from decur.objectives import Objective
from decur.plan.calibration import (
    ENDLESS,
    Calibration,
    calibrate,
    device_memory,
    measure_activations,
)
from decur.plan.costs import Memory, Shape, dtype_of, itemsize, kept_by_loss, parts_of
from decur.plan.reading import LEAST, Reading, measure_reading
from decur.plan.result import ROOM, Plan, Share
from decur.pretrain import Pretrainer
from decur.pretrain.compiling import Compile, pays
from decur.pretrain.settings import (
    MonitorSettings,
    OptimizerSettings,
    ProjectorSettings,
    ViewSettings,
)
from decur.pretrain.trainer import (
    limited,
    quiet_lightning,
    refuse_accumulation,
    refuse_endless,
    seed_everything,
)

_AHEAD = 2  # batches that each worker has ready (PyTorch's prefetch_factor)
_READ_SECONDS = 5.0


def plan(
    data: PairedDataset,
    objective: Objective,
    modalities: Sequence[str] | None = None,
    encoder: EncoderSettings | None = None,
    projector: ProjectorSettings | None = None,
    views: ViewSettings | None = None,
    optimizer: OptimizerSettings | None = None,
    loader: LoaderSettings | None = None,
    monitor: MonitorSettings | None = None,
    *,
    seed: int = 0,
    channels_last: bool = True,
    compile: Compile = "auto",
    trainer: dict[str, Any] | None = None,
    gpus: Sequence[int] = (1,),
    device: torch.device | str = "cpu",
    seconds: float = 30.0,
    link: float = 25e9,
    samples: int | None = None,
    memory: int | None = None,
) -> Plan:
    """Foresee what `pretrain` with the same arguments costs.

    Args:
        data: what is trained on, or an example of it.
        objective: the method.
        modalities: sensors to train on; None for all of the data.
        encoder: backbones; weights from a network are not fetched, they cost no more.
        projector: projectors.
        views: augmented views.
        optimizer: optimiser.
        loader: the batch, over all devices, and workers.
        monitor: what is watched.
        seed: of weights and order.
        channels_last: see `pretrain`.
        compile: see `pretrain`; nothing is compiled here, since that takes minutes.
        trainer: options of Lightning's Trainer.
        gpus: numbers of devices.
        device: that is measured; all others are taken to be like it.
        seconds: of calibration, about.
        link: bytes a second that each device sends to others; exchange is added to computing,
            though some of it goes on at the same time.
        samples: of the whole data set, where `data` is an example.
        memory: bytes of a device; None for those of `device`.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if too few samples can be read.
    """
    device, options = torch.device(device), dict(trainer or {})
    refuse_endless(options)
    refuse_accumulation(options, objective)
    loader, optimizer = loader or LoaderSettings(), optimizer or OptimizerSettings()
    data = select(data, modalities)
    count = samples or len(data)
    steps, per_epoch = _length(options, count, loader.batch_size)
    epochs, monitor = steps / per_epoch, monitor or MonitorSettings()
    for number in gpus:
        if number < 1 or loader.batch_size % number or loader.batch_size < LEAST * number:
            raise ConfigError(
                f"--gpus: loader.batch_size {loader.batch_size} does not divide among {number} "
                f"devices, {LEAST} or more samples for each"
            )
    quiet_lightning()
    seed_everything(seed)

    def build() -> Pretrainer:
        return Pretrainer(
            data.modalities,
            copy.deepcopy(objective),
            dataclasses.replace(encoder or EncoderSettings(), pretrained=False),
            projector,
            views,
            # all steps are alike where nothing is learned
            dataclasses.replace(optimizer, lr=0.0, lr_bias=0.0),
            batch_size=loader.batch_size,
            channels_last=channels_last,
            compile=False,
            # as often as among the steps of an epoch
            monitor_batches=ENDLESS // max(1, per_epoch // max(1, monitor.batches)),
        )

    precision = str(options.get("precision") or "32-true")
    cost = _Cost(build().to("meta"), objective, precision)
    there, needed = device_memory(device), cost.shape.memory(0, 0).fixed
    if needed > there:
        raise ConfigError(
            f"{device}: weights, gradients and the optimiser's state take {needed / 1e9:.1f} GB, "
            f"there are {there / 1e9:.1f} GB; choose a smaller encoder.name or projector.width"
        )
    reading, examples = measure_reading(data, loader, seed, min(_READ_SECONDS, seconds / 3))
    model = build()
    cost.measured(measure_activations(model, examples, options, device), reading.pictures)
    sizes = [loader.batch_size]
    while sizes[0] // 2 >= LEAST:
        sizes.insert(0, sizes[0] // 2)
    room = there * (ROOM if device.type == "cuda" else 0.5)  # main memory is for others, too
    sizes = [n for n in sizes if n == sizes[0] or cost.memory(n, n).total <= room]
    calibration = calibrate(model, examples, sizes, options, device, seconds)
    pause = _monitor(monitor, count, calibration, reading)
    compiled = pays(device, steps) if compile == "auto" else compile
    return Plan(
        str(device),
        precision,
        compiled,
        count,
        loader.batch_size,
        epochs,
        steps,
        parts_of(cost.model, objective, loader.batch_size),
        cost.shape,
        measure_device(device, dtype_of(precision), min(1.0, seconds / 10)),
        calibration,
        reading,
        memory or there,
        round(_AHEAD * reading.workers * loader.batch_size * reading.pictures),
        pause,
        link,
        [
            _share(cost, calibration, reading, number, link, (steps, pause * epochs))
            for number in gpus
        ],
    )


class _Cost:
    """Memory of a step, once what it keeps has been measured on small ones."""

    def __init__(self, model: Pretrainer, objective: Objective, precision: str) -> None:
        self.model, self.objective, self.precision = model, objective, precision
        self.shape = Shape.of(model, itemsize(precision))
        sensors = list(model.modalities)
        compared = cost_of_loss(objective, sensors, model.batch_size)[2]
        self.views = views_compared(compared, len(sensors))

    def measured(self, kept: Mapping[int, int], pictures: float) -> None:
        """Take what real steps of two sizes keep apart: a constant, and each sample's."""
        (small, less), (large, more) = sorted(
            (samples, total - self._loss(samples)) for samples, total in kept.items()
        )
        each = (more - less) / (large - small)
        self.shape = dataclasses.replace(
            self.shape, pictures=pictures, activations=(max(0.0, less - each * small), each)
        )

    def memory(self, samples: int, batch: int) -> Memory:
        """Of a device with some samples of a batch."""
        return self.shape.memory(samples, self._loss(batch))

    def _loss(self, batch: int) -> int:
        return kept_by_loss(self.objective, list(self.model.modalities), batch)


def _share(
    cost: _Cost,
    calibration: Calibration,
    reading: Reading,
    gpus: int,
    link: float,
    run: tuple[int, float],
) -> Share:
    model, batch, samples = cost.model, cost.model.batch_size, cost.model.batch_size // gpus
    compute = calibration.seconds(samples)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    sent = traffic(
        *(model.objective.dim, len(model.modalities), batch, trained, gpus, cost.views),
        itemsize=itemsize(cost.precision),
    )
    exchange = sent["total"] / link
    cores, workers = os.cpu_count() or 1, reading.workers
    # each device has workers of its own, but no cores of its own
    read = batch / (reading.rate * min(gpus, max(1.0, cores / max(1, workers))))
    step = max(compute + exchange, read) if workers else compute + exchange + read
    if calibration.threads:  # a CPU, which workers share
        step = max(step, (compute * calibration.threads + read * workers) / cores)
    steps, pauses = run
    hours = (steps * step + pauses) / 3600
    memory = cost.memory(samples, batch)
    return Share(gpus, samples, memory, compute, exchange, read, step, hours)


def _monitor(
    settings: MonitorSettings, count: int, calibration: Calibration, reading: Reading
) -> float:
    if not settings.every_epochs:
        return 0.0
    samples = min(settings.samples, count)
    # one picture instead of two views, and no backward pass, which takes twice as long
    forward = calibration.line()[1] / 6
    return samples * (1 / reading.alone + forward) / settings.every_epochs


def _length(options: dict[str, Any], samples: int, batch: int) -> tuple[int, int]:
    """Batches of a run, and of an epoch."""
    whole = samples // batch
    if not whole:
        raise ConfigError(
            f"loader.batch_size: {batch} is more than the {samples} samples there are; set it to "
            f"{max(2, samples)} or less, or say with --samples how many there will be"
        )
    each = limited(whole, options.get("limit_train_batches"))
    epochs = options.get("max_epochs")
    most = options.get("max_steps")
    steps = each * (100 if epochs is None else epochs)
    if most is not None and most >= 0:
        most *= options.get("accumulate_grad_batches") or 1
        steps = most if steps < 0 else min(steps, most)
    return steps, each
