"""How fast samples come from files to views, and objectives from embeddings to gradients."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from decur.bench.measure import Row, count, measure, peak_memory
from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.errors import BadSampleError, DataError
from decur.modality import Modality
from decur.objectives.base import Objective
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.settings import ViewSettings
from decur.views import Views, sample_seeds


def batches(
    data: PairedDataset, loader: LoaderSettings, seed: int = 0
) -> Generator[Batch, None, None]:
    """Yield the batches of training, epoch after epoch, as one process of pretraining reads them.

    Close the generator: its worker processes do not heed signals.
    """
    loading = PairedData(data, loader, seed=seed).train_dataloader()
    for epoch in itertools.count():
        assert isinstance(loading.batch_sampler, EpochBatches)
        loading.batch_sampler.set_epoch(epoch)
        yield from loading


def bench_data(
    data: PairedDataset,
    loader: LoaderSettings,
    views: ViewSettings,
    device: torch.device,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure a data set in the order of an epoch of pretraining.

    Each step alone runs in this process; the loader and the whole pipeline use worker processes,
    whose start is not counted. Disks count only where the data is larger than the page cache.

    Args:
        data: any data set.
        loader: batches and workers.
        views: the augmented views.
        device: where views are made.
        seconds: duration of each measurement.

    Yields:
        A row for each step as soon as it is known, with "megabytes" of pictures a second.

    Raises:
        ConfigError: if there are fewer samples than one batch needs.
        DataError: if no sample can be read.
    """
    data = data.only(targets=())  # as pretraining reads it
    order = EpochBatches(len(data), loader.batch_size, seed=0, order=data.order)
    indices = [index for batch in itertools.islice(order, 8) for index in batch]
    dataset, collate = SkipBad(data), Collate(data.modalities, {})
    samples = [dataset[index] for index in indices[: loader.batch_size]]
    readable = [i for i, sample in zip(indices, samples, strict=False) if "bad" not in sample]
    if not readable:
        raise DataError(f"none of {len(samples)} samples can be read: {samples[0].get('bad')}")
    size = sum(x.nbytes for sample in samples for x in sample["images"].values()) / len(samples)

    def row(step: str, times: Sequence[float], pairs: int) -> Row:
        # By the mean and not the median: what workers have prepared comes in bursts.
        rate = pairs / statistics.mean(times)
        return Row(step, pairs, times, rate=rate, about={"megabytes": rate * size / 1e6})

    def of(work: Callable[[], object]) -> list[float]:
        return measure(work, seconds)

    turns, stored = itertools.cycle(indices), itertools.cycle(readable)
    decoding, reading = of(lambda: dataset[next(turns)]), []
    with contextlib.suppress(BadSampleError):
        if data.read_bytes(readable[0]) is not None:
            reading = of(lambda: data.read_bytes(next(stored)))
            yield row("read", reading, 1)
            rest = statistics.mean(decoding) - statistics.mean(reading)
            yield row("decode", [max(1e-9, rest)], 1)
    yield row("read and decode", decoding, 1)
    batch, pairs = collate(samples), len(samples)
    yield row("collate", of(lambda: collate(samples)), pairs)
    if device.type != "cpu":
        pinned: Batch = {**batch, "images": {k: x.pin_memory() for k, x in batch["images"].items()}}
        yield row(f"transfer to {device}", of(lambda: _move(pinned, device)), pairs)
    augment = _Augment(data.modalities, views)
    there = _move(batch, device)
    yield row("views", of(lambda: augment(there)), pairs)
    with contextlib.closing(batches(data, loader)) as stream:
        yield row(f"loader, {loader.processes()} workers", of(lambda: next(stream)), pairs)
        yield row("whole pipeline", of(lambda: augment(_move(next(stream), device))), pairs)


def bench_views(
    data: PairedDataset,
    loader: LoaderSettings,
    views: ViewSettings,
    device: torch.device,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure scaling to [0, 1] and both views of a batch: of each sensor alone, and of all."""
    (batch,) = itertools.islice(batches(data, LoaderSettings(loader.batch_size, workers=0)), 1)
    batch = _move(batch, device)
    alone = [(name, {name: modality}) for name, modality in data.modalities.items()]
    for title, chosen in [*(alone if len(alone) > 1 else []), ("all sensors", data.modalities)]:
        augment = _Augment(chosen, views)
        times = measure(lambda: augment(batch), seconds)  # noqa: B023
        memory = peak_memory(lambda: augment(batch), device)  # noqa: B023
        yield Row(title, len(batch["ids"]), times, memory)


class _Augment:
    """Two views of each of some sensors of a batch."""

    def __init__(self, modalities: Mapping[str, Modality], views: ViewSettings) -> None:
        self.modalities = modalities
        self.views = Views(
            modalities,
            views.size,
            shared_geometry=views.shared_geometry,
            overrides=views.augment,
            recipes=views.recipes,
            levels=views.levels,
        )

    @torch.no_grad()
    def __call__(self, batch: Batch) -> None:
        images = {name: m.scale(batch["images"][name]) for name, m in self.modalities.items()}
        self.views(images, sample_seeds(batch["ids"], 0, epoch=0))


def _move(batch: Batch, device: torch.device) -> Batch:
    images = {name: x.to(device, non_blocking=True) for name, x in batch["images"].items()}
    return {**batch, "images": images}


def bench_loss(
    objectives: Sequence[Objective],
    modalities: Sequence[str],
    batch: int,
    device: torch.device,
    rate: float,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure objectives of different widths, forward and backward.

    Args:
        objectives: are measured one after the other.
        modalities: names of the sensors.
        batch: samples, N.
        device: that computes.
        rate: operations a second of the device's best matrix product, see `matmul_rate`.
        seconds: duration of each measurement.

    Yields:
        A row for each objective with its width "dim", the "views" of a sensor that it compares, and
        its "growth": the time for a dimension relative to the first row, 1 if time is linear in K.
    """
    growth: list[float] = []
    for objective in objectives:
        step = LossStep(copy.deepcopy(objective).to(device), modalities, batch, device)
        operations, views = count(step), step()
        times = measure(step, seconds)
        growth.append(statistics.median(times) / objective.dim)
        yield Row(
            f"{type(objective).__name__} {batch} x {objective.dim}",
            batch,
            times,
            memory=peak_memory(step, device),
            operations=operations,
            floor=operations / rate,
            about={"dim": objective.dim, "views": views, "growth": growth[-1] / growth[0]},
        )


class LossStep:
    """An objective forward and backward, on embeddings (N, K) that share half of their variance."""

    def __init__(
        self, objective: Objective, modalities: Sequence[str], batch: int, device: torch.device
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (batch, objective.dim)
        scene = torch.randn(shape, generator=generator)  # (N, K)

        def view() -> Tensor:
            noise = torch.randn(shape, generator=generator)
            return (scene + noise).to(device).requires_grad_()

        self.objective = objective
        self.embeddings = {name: (view(), view()) for name in modalities}

    def __call__(self) -> int:
        """Compute the loss and all gradients; return how many views of a sensor it compares."""
        self.objective(self.embeddings)["loss"].backward()
        compared = 0
        for z in itertools.chain.from_iterable(self.embeddings.values()):
            compared += z.grad is not None
            z.grad = None
        return -(-compared // len(self.embeddings))
