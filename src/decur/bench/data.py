"""`decur bench data`: how fast each step from files to views is, alone and as a pipeline."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass

import torch

from decur.bench.device import Rates, measure_device, measure_transfer, wait
from decur.bench.timing import LEAST, Row, Timing
from decur.bench.views import moved_by_views
from decur.data import Batch, Collate, LoaderSettings, PairedDataset, Sample, SkipBad
from decur.errors import BadSampleError, DataError
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.settings import ViewSettings
from decur.views import Views, sample_seeds


@dataclass(frozen=True)
class Speed:
    """What one step reaches.

    Args:
        step: its name.
        pairs: samples a second.
        megabytes: of pictures a second.
        row: time of a turn, and its floor.
    """

    step: str
    pairs: float
    megabytes: float
    row: Row


def bench_data(
    data: PairedDataset,
    loader: LoaderSettings | None = None,
    views: ViewSettings | None = None,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
    rates: Rates | None = None,
) -> Iterator[Speed]:
    """Measure a data set, in the order of an epoch of pretraining.

    Each step alone runs in this process; the loader and the pipeline use worker processes, and
    their start is not counted. Floors: the bytes of files and pictures, read and written once at
    the speed of a copy in memory, or of the way to the device.

    Args:
        data: any data set.
        loader: batches and workers.
        views: the augmented views.
        device: where views are made.
        seconds: how long each step is measured; the first pass over the samples fills the page
            cache, so that disks count only where the data is larger than what was read before.
        rates: of the device; None: measured first.

    Yields:
        The speed of each step, as soon as it is known.

    Raises:
        ConfigError: if there are fewer samples than one batch needs.
        DataError: if no sample can be read.
    """
    loader, views = loader or LoaderSettings(), views or ViewSettings()
    device, data = torch.device(device), data.only(targets=())  # as pretraining reads it
    batches = EpochBatches(len(data), loader.batch_size, seed=0, order=data.order)
    indices = [index for batch in itertools.islice(batches, 8) for index in batch]
    whole = SkipBad(data)
    samples = [whole[index] for index in indices[: loader.batch_size]]
    size = sum(map(_bytes, samples)) // len(samples)
    if not size:
        raise DataError(f"none of {len(samples)} samples can be read: {samples[0].get('bad')}")
    readable = next(i for i, s in zip(indices, samples, strict=False) if "bad" not in s)
    stored = data.read_bytes(readable)
    cpu = torch.device("cpu")
    rates = rates or measure_device(device, seconds=min(1.0, seconds))
    host = rates if device == cpu else measure_device(cpu, seconds=min(1.0, seconds))

    def speed(
        step: str, work: Callable[[], int], moved: int, floor: float, where: torch.device = cpu
    ) -> Speed:
        timing, pairs, rate = _rate(work, seconds, where)
        row = Row(step, pairs, timing, moved=moved * pairs, floor=floor * pairs, rate=rate)
        return Speed(step, rate, rate * size / 1e6, row)

    turns = itertools.cycle(indices)
    filed = 0 if stored is None else len(stored)
    decoding = speed(
        "read and decode",
        lambda: len(whole[next(turns)]) and 1,
        filed + size,
        host.floor(0, filed + size),
    )
    if stored is not None:
        reading = speed(
            "read", lambda: _read(data, next(turns)), 2 * filed, host.floor(0, 2 * filed)
        )
        yield reading
        yield _difference("decode", decoding, reading, filed + size, host, size)
    yield decoding
    collate = Collate(data.modalities, {})
    yield speed(
        "collate",
        lambda: len(collate(samples)["ids"]),
        2 * size,
        host.floor(0, 2 * size, size * len(samples)),
    )
    batch = collate(samples)
    way = 0.0
    if device.type != "cpu":
        pinned: Batch = {**batch, "images": {k: x.pin_memory() for k, x in batch["images"].items()}}
        way = size / measure_transfer(device, size * len(samples))
        yield speed(
            f"transfer to {device}", lambda: len(_move(pinned, device)["ids"]), size, way, device
        )
    make = Views(data.modalities, views.size, views.shared_geometry, views.augment)

    def augment(batch: Batch) -> int:
        images = {name: m.scale(batch["images"][name]) for name, m in data.modalities.items()}
        with torch.no_grad():
            make(images, sample_seeds(batch["ids"], 0, 0))
        return len(batch["ids"])

    there: Batch = {**batch, "images": _move(batch, device)["images"]}
    moved = moved_by_views(there["images"], make.size) // len(samples)
    made = rates.floor(0, moved, size * len(samples))
    yield speed("views", lambda: augment(there), moved, made, device)
    workers = loader.processes()
    read = host.floor(0, filed + size) / max(1, workers)
    with contextlib.closing(endless(data, loader)) as stream:
        yield speed(
            f"loader, {workers} workers", lambda: len(next(stream)["ids"]), filed + size, read
        )
        yield speed(
            "whole pipeline",
            lambda: augment(_move(next(stream), device)),
            filed + size + moved,
            max(read, way, made),
            device,
        )


def endless(
    data: PairedDataset, settings: LoaderSettings, seed: int = 0
) -> Generator[Batch, None, None]:
    """The batches of training, epoch after epoch, as one process of pretraining reads them.

    To be closed, since its worker processes do not heed signals.

    Args:
        data: any data set.
        settings: batches and workers.
        seed: of the order.
    """
    loader = PairedData(data, settings, seed).train_dataloader()
    for epoch in itertools.count():
        assert isinstance(loader.batch_sampler, EpochBatches)
        loader.batch_sampler.set_epoch(epoch)
        yield from iter(loader)


def _difference(step: str, both: Speed, one: Speed, moved: int, rates: Rates, size: int) -> Speed:
    """What is left of a step when a part of it is taken away."""
    a, b = both.row.time, one.row.time
    time = Timing(
        max(0.0, a.median - b.median), max(0.0, a.low - b.low), max(0.0, a.high - b.high), a.turns
    )
    left = max(1 / both.pairs - 1 / one.pairs, 1e-9)  # seconds a pair
    row = Row(step, 1, time, moved=moved, floor=rates.floor(0, moved), rate=1 / left)
    return Speed(step, 1 / left, size / left / 1e6, row)


def _read(data: PairedDataset, index: int) -> int:
    with contextlib.suppress(BadSampleError):
        data.read_bytes(index)
    return 1


def _move(batch: Batch, device: torch.device) -> Batch:
    images = {name: x.to(device, non_blocking=True) for name, x in batch["images"].items()}
    return {**batch, "images": images}


def _bytes(sample: Sample) -> int:
    return sum(image.nbytes for image in sample["images"].values())


def _rate(
    work: Callable[[], int], seconds: float, device: torch.device
) -> tuple[Timing, int, float]:
    """Time of a turn after one to warm up, pairs in a turn, and pairs a second of all turns.

    The rate is that of all turns together: what workers have prepared comes in bursts.
    """
    work()
    wait(device)
    start, pairs = time.perf_counter(), 0
    times: list[float] = []
    while len(times) < LEAST or time.perf_counter() - start < seconds:
        before = time.perf_counter()
        turn = work()
        wait(device)
        times.append(time.perf_counter() - before)
        pairs += turn
    return Timing.of(times), turn, pairs / (time.perf_counter() - start)
