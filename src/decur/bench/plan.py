"""How many hours and how much memory a run will take, foreseen from a few real steps."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from decur.bench.data import batches, loss_step
from decur.bench.measure import NumberFormats, Pretraining, formats_of, measure
from decur.bench.step import StepClock, Steps
from decur.data import Batch, SkipBad
from decur.errors import BadSampleError, DataError, require
from decur.memory import memory_of_machine
from decur.pretrain.compiling import pays
from decur.pretrain.data import PairedData, refuse_too_few
from decur.pretrain.distributed import traffic
from decur.pretrain.module import Pretrainer
from decur.pretrain.share import counting_steps, wants_share
from decur.pretrain.trainer import length_of_run
from decur.terminal import quantity

# Share of a device's memory that a plan fills; the rest is for kernels and gaps between tensors.
ROOM = 0.9
LEAST = 2  # fewest samples of a batch on a device: batch statistics need two


@dataclasses.dataclass(frozen=True)
class Share:
    """A run on a number of devices."""

    gpus: int
    samples: int  # of a batch, on each
    memory: dict[str, int]  # bytes on each, by what they are for, and of "all"
    sent: dict[str, int]  # bytes that each sends in a step, see `traffic`
    seconds: dict[str, float]  # of "a step", and of its parts, which may go on at the same time
    hours: float  # of the run


@dataclasses.dataclass(frozen=True)
class RunCost:
    """What a run will cost."""

    device: str  # that was measured
    precision: str  # Lightning's name
    compiled: bool  # whether the run compiles its networks, which makes it faster than planned
    samples: int  # of the data set
    batch: int  # samples of a step, on all devices
    epochs: float
    steps: int
    counting: int  # steps before these, which count the share of common dimensions
    parameters: int  # that are trained
    measured: list[tuple[int, float]]  # samples and seconds of steps, the smaller batch first
    reading: dict[str, float]  # see `measure_reading`
    workers: int  # that read for a device
    capacity: int  # bytes of a device
    link: float  # bytes a second that each device sends
    shares: list[Share]

    @property
    def ahead(self) -> float:
        """Bytes of main memory in which a device's workers keep two batches each ready."""
        return 2 * self.workers * self.batch * self.reading["pictures"]

    def assumptions(self) -> Iterator[str]:
        """Yield what is taken to be so and is not measured."""
        there, rate = quantity(self.capacity, "B"), quantity(self.link, "B/s")
        yield f"all devices are like {self.device}, have {there} each and send {rate} (--link)"
        kept = f"memory lies on the line through steps of {LEAST} and {2 * LEAST} samples"
        yield f"{kept}; kernels, the allocator and Python itself are not counted"
        yield "reading has the cores of this machine, and files that are in memory (page cache)"

    def warnings(self) -> Iterator[str]:
        """Yield what will not do, each with what would."""
        there = quantity(self.capacity, "B")
        for share in self.shares:
            if share.memory["all"] > ROOM * self.capacity:
                where = "one device" if share.gpus == 1 else f"{share.gpus} devices"
                needed, remedies = quantity(share.memory["all"], "B"), self._remedies(share)
                need = f"memory: on {where} a step needs about {needed}, and there are {there}"
                yield f"{need} on each; try {'; or '.join(remedies)}"
        main = device_memory(torch.device("cpu"))
        if self.ahead > main / 2:
            ready = f"main memory: workers keep {quantity(self.ahead, 'B')} of batches ready, of "
            yield f"{ready}{quantity(main, 'B')}; try loader.workers {self.workers // 2}"

    def _remedies(self, share: Share) -> Iterator[str]:
        room, needed = ROOM * self.capacity, share.memory["all"]
        fixed = sum(share.memory[key] for key in ("weights", "gradients", "optimiser"))
        if fixed > room:
            yield "a smaller encoder.name or projector.width: weights alone take too much"
            return
        fits = int((room - fixed) / (needed - fixed) * share.samples)
        if fits >= LEAST:
            yield f"loader.batch_size {fits * share.gpus}"
        if self.precision == "32-true":
            less = needed - share.memory["activations"] / 2
            does = "fits" if less <= room else "is still too much"
            yield f"trainer.precision bf16-mixed: about {quantity(less, 'B')}, which {does}"
        yield "encoder.checkpointing true, which keeps the inputs of an encoder's blocks alone"
        yield "more devices, among which a batch divides (--gpus)"


def plan(
    run: Pretraining,
    *,
    gpus: Sequence[int] = (1,),
    link: float = 25e9,
    seconds: float = 30.0,
    samples: int | None = None,
) -> RunCost:
    """Foresee what `pretrain` costs, on one and on many devices like the one that is measured.

    Args:
        run: the pretraining, on the data or on an example of it. Nothing is compiled, since that
            takes minutes.
        gpus: numbers of devices that are planned for.
        link: bytes a second that each sends to others. Sending is added to computing, though some
            of it goes on at the same time.
        seconds: duration of the measurements, about.
        samples: of the whole data set, where the data is an example of it.

    Raises:
        ConfigError: if the configuration cannot be run.
        DataError: if too few samples can be read.
    """
    settings, device, objective = run.settings, run.device, run.objective
    options, batch = settings.trainer.as_dict(), settings.loader.batch_size
    number, workers = samples or len(run.data), settings.loader.processes()
    refuse_too_few(number, batch, ", or say with --samples how many there will be")
    length, epoch = length_of_run(options, number // batch)
    counting, epochs = 0, math.ceil(length / epoch)
    if wants_share(objective):
        paired = PairedData(run.data, settings.loader, seed=settings.seed)
        counting = counting_steps(paired, epochs, number, options["limit_train_batches"])
    for count in gpus:
        require(count >= 1, f"--gpus: must be at least 1, is {count}")
        divides = batch % count == 0 and batch >= LEAST * count
        apart = f"does not divide among {count} devices, {LEAST} or more samples for each"
        require(divides, f"--gpus: loader.batch_size {batch} {apart}")
    compiled = pays(device, length) if settings.compile == "auto" else settings.compile
    encoder = dataclasses.replace(settings.encoder, pretrained=False)  # costs the same
    settings = dataclasses.replace(settings, encoder=encoder, compile=False)
    run = dataclasses.replace(run, settings=settings)
    steps, formats = Steps(run), formats_of(options)
    trained = sum(p.numel() for p in steps.model.parameters() if p.requires_grad)
    size, there = formats.parameters.itemsize, device_memory(device)
    taken, free = 2 * trained * size, f"there are {quantity(there, 'B')}"
    need = f"{device}: weights and gradients take {quantity(taken, 'B')}, {free}"
    require(taken <= there, f"{need}; choose a smaller encoder.name or projector.width")
    reading, examples = measure_reading(run, min(5.0, seconds / 3))
    sensors = list(run.data.modalities)
    views = loss_step(objective, sensors, 4, torch.device("cpu"))()
    memory_of = measure_memory(steps, examples, 4 * objective.dim * views * len(sensors))
    sizes = sorted(batch >> halvings for halvings in range(batch.bit_length() - 1))
    room = there * (ROOM if device.type == "cuda" else 0.5)  # main memory is for others, too
    sizes = [n for n in sizes if n == sizes[0] or memory_of(n, n)["all"] <= room]

    def times(size: int, least: float) -> list[float]:
        clock = StepClock(device, least, least=3, warm_up=2)
        found = steps.train(itertools.repeat(tile(examples, size)), clock)
        return [sum(step.values()) for step in found]

    measured = time_steps(times, sizes, seconds)
    fixed, each = line(measured)
    monitor, paused = settings.monitor, 0.0
    if monitor.every_epochs:
        # One picture in place of two views, and no backward pass, which takes twice as long.
        paused = min(monitor.samples, number) * (1 / reading["alone"] + each / 6)
        paused *= length / epoch / monitor.every_epochs
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    cores = os.cpu_count() or 1

    def share_of(count: int) -> Share:
        own = batch // count
        sent = traffic(objective.dim, len(sensors), batch, trained, count, views, size)
        computing, sending = fixed + each * own, sent["total"] / link
        # Each device has workers of its own, but no cores of its own.
        read = batch / (reading["rate"] * min(count, max(1.0, cores / max(1, workers))))
        step = max(computing + sending, read) if workers else computing + sending + read
        if threads:  # on the cores that read
            step = max(step, (computing * threads + read * workers) / cores)
        took = {"computing": computing, "sending": sending, "reading": read, "a step": step}
        return Share(
            gpus=count,
            samples=own,
            memory=memory_of(own, batch),
            sent=sent,
            seconds=took,
            hours=((length + counting) * step + paused) / 3600,
        )

    return RunCost(
        device=str(device),
        precision=formats.precision,
        compiled=compiled,
        samples=number,
        batch=batch,
        epochs=length / epoch,
        steps=length,
        counting=counting,
        parameters=trained,
        measured=measured,
        reading=reading,
        workers=workers,
        capacity=there,
        link=link,
        shares=[share_of(count) for count in gpus],
    )


def device_memory(device: torch.device) -> int:
    """Return the bytes that a run may take: what is free of a GPU, main memory of a CPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return memory_of_machine() or sys.maxsize


def measure_reading(run: Pretraining, seconds: float) -> tuple[dict[str, float], Batch]:
    """Read samples in this process and through the loader, each for half of the time.

    Returns:
        Samples a second "alone" and at the "rate" of the loader's workers, bytes of a sample's
        "pictures" and, where something is read, of its "files"; and a batch of examples.

    Raises:
        DataError: if no sample can be read.
    """
    data, loader = run.data.only(targets=()), run.settings.loader  # as pretraining reads it
    # A small batch tells sooner.
    loader = dataclasses.replace(loader, batch_size=min(16, loader.batch_size, len(data)))
    with contextlib.closing(batches(run, loader)) as stream:
        examples = next(stream)
        if len(examples["ids"]) < LEAST:
            raise DataError(f"{len(examples['ids'])} of {loader.batch_size} samples can be read")
        rate = loader.batch_size / statistics.mean(measure(lambda: next(stream), seconds / 2))
    turns, dataset = itertools.cycle(range(len(data))), SkipBad(data)
    alone = 1 / statistics.mean(measure(lambda: dataset[next(turns)], seconds / 2))
    pictures = sum(x.nbytes for x in examples["images"].values()) / len(examples["ids"])
    found = {"alone": alone, "rate": rate, "pictures": pictures}
    with contextlib.suppress(BadSampleError):
        stored = data.read_bytes(next(turns))
        found |= {} if stored is None else {"files": stored.nbytes}
    return found, examples


def tile(batch: Batch, samples: int) -> Batch:
    """Return a batch of another size: the same samples over and over, the most complete first."""
    complete = torch.stack(list(batch["present"].values())).sum(0)
    order = complete.argsort(descending=True, stable=True)
    rows = order[torch.arange(samples) % len(order)]
    return {
        "images": {name: x[rows] for name, x in batch["images"].items()},
        "present": {name: x[rows] for name, x in batch["present"].items()},
        "target": {},
        "ids": [batch["ids"][int(row)] for row in rows],
        "bad": [],
    }


def measure_memory(
    steps: Steps, examples: Batch, embeddings: int
) -> Callable[[int, int], dict[str, int]]:
    """Measure what two small steps keep for their backward pass, and foresee the memory of others.

    What kernels take for a moment does not count, nor what the allocator leaves unused.

    Args:
        steps: of a configuration.
        examples: what batches are made of.
        embeddings: bytes of a sample's embeddings that are compared.

    Returns:
        `f(samples of a device, samples of all devices) = {what for, or "all": bytes}`.
    """
    formats = formats_of(steps.options)
    model = steps.model.to(steps.device, formats.parameters)
    small, large = (kept_by_step(model, tile(examples, n), formats) for n in (LEAST, 2 * LEAST))
    each = (large - small) / LEAST
    fixed = max(0.0, small - LEAST * each)
    optimizer = steps.settings.optimizer
    states = 2 if optimizer.name == "adamw" else int(optimizer.momentum > 0)
    trained = sum(p.nbytes for p in model.parameters() if p.requires_grad)
    weights = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    pictures = sum(x[0].nbytes for x in examples["images"].values())

    def memory(samples: int, batch: int) -> dict[str, int]:
        parts = {
            "weights": weights,
            "gradients": trained,
            "optimiser": states * trained,
            "activations": round(fixed + each * samples),  # views among them
            # Gathered for the loss, standardised, and their gradients.
            "others' embeddings": 3 * embeddings * (batch - samples),
            "pictures": pictures * samples,
        }
        return {**parts, "all": sum(parts.values())}

    return memory


def kept_by_step(model: Pretrainer, batch: Batch, formats: NumberFormats) -> int:
    """Return the bytes that a step keeps for its backward pass, besides weights and buffers."""
    kept: dict[int, torch.UntypedStorage] = {}  # each storage once, as a whole

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage()._cdata] = x.untyped_storage()
        return x.detach()  # an output that its own node keeps would never be freed

    kind, mixed = model.device.type, formats.precision.endswith("mixed")
    with saved_tensors_hooks(keep, lambda x: x), torch.autocast(kind, formats.products, mixed):
        model.training_step(model.transfer_batch_to_device(batch, model.device, 0), 0)
    for x in (*model.parameters(), *model.buffers()):
        kept.pop(x.untyped_storage()._cdata, None)
    return sum(storage.nbytes() for storage in kept.values())


def time_steps(
    run: Callable[[int, float], list[float]], sizes: Sequence[int], seconds: float
) -> list[tuple[int, float]]:
    """Return `(samples, seconds)` of steps with a quarter of a large batch, and with the batch.

    Args:
        run: `f(samples, seconds)` trains for a while, and returns the seconds of each step.
        sizes: samples of the batches that may be tried, the smallest first. The largest one is
            chosen that is fast enough.
        seconds: duration, about.
    """
    large = sizes[0]
    for size in sizes[1:]:
        soon = 5 * size / large * min(run(large, 0.0))  # seconds of five steps, at most
        # Steps with few samples do not show which part of their time is the same for any batch.
        if soon > (2 * seconds if size <= 16 else seconds / 3):
            break
        large = size
    chosen = dict.fromkeys((max(LEAST, large // 4), large))
    return [(size, statistics.median(run(size, seconds / 3))) for size in chosen]


def line(measured: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Return the seconds of a step whatever the batch, and for each sample of it."""
    (small, fast), (large, slow) = measured[0], measured[-1]
    each = (slow - fast) / max(1, large - small)
    if not 0 < each <= slow / large:  # two times that differ by chance
        each = slow / large
    return slow - each * large, each
