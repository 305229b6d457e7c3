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
from decur.data import Batch, Collate, PairedDataset, Sample, SkipBad
from decur.data.loader import LoaderSettings
from decur.errors import BadSampleError, DataError
from decur.modality import Modality
from decur.objectives import Objective
from decur.pretrain.data import EpochBatches, PairedData
from decur.pretrain.settings import ViewSettings
from decur.views import Views, sample_seeds


def bench_data(
    data: PairedDataset,
    loader: LoaderSettings | None = None,
    views: ViewSettings | None = None,
    device: torch.device | str = "cpu",
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
    loader, views = loader or LoaderSettings(), views or ViewSettings()
    device, data = torch.device(device), data.only(targets=())  # as pretraining reads it
    order = EpochBatches(len(data), loader.batch_size, seed=0, order=data.order)
    indices = [index for batch in itertools.islice(order, 8) for index in batch]
    dataset, collate = SkipBad(data), Collate(data.modalities, {})
    samples = [dataset[index] for index in indices[: loader.batch_size]]
    size = sum(map(_bytes, samples)) // len(samples)
    if not size:
        raise DataError(f"none of {len(samples)} samples can be read: {samples[0].get('bad')}")
    batch = collate(samples)

    def row(step: str, work: Callable[[], object], pairs: int) -> Row:
        return _row(step, measure(work, seconds), pairs, size)

    turns = itertools.cycle(indices)
    decoding = row("read and decode", lambda: dataset[next(turns)], 1)
    readable = next(i for i, sample in zip(indices, samples, strict=False) if "bad" not in sample)
    if data.read_bytes(readable) is not None:
        reading = row("read", lambda: _read(data, next(turns)), 1)
        yield reading
        both, one = (statistics.mean(each.times) for each in (decoding, reading))
        yield _row("decode", [max(1e-9, both - one)], 1, size)
    yield decoding
    pairs = len(batch["ids"])
    yield row("collate", lambda: collate(samples), pairs)
    if device.type != "cpu":
        pinned: Batch = {**batch, "images": {k: x.pin_memory() for k, x in batch["images"].items()}}
        yield row(f"transfer to {device}", lambda: _move(pinned, device), pairs)
    make = Views(data.modalities, views.size, views.shared_geometry, views.augment)
    there = _move(batch, device)
    yield row("views", lambda: _augment(data.modalities, make, there), pairs)
    with contextlib.closing(batches(data, loader)) as stream:
        yield row(f"loader, {loader.processes()} workers", lambda: next(stream), pairs)
        yield row(
            "whole pipeline",
            lambda: _augment(data.modalities, make, _move(next(stream), device)),
            pairs,
        )


def batches(
    data: PairedDataset, loader: LoaderSettings, seed: int = 0
) -> Generator[Batch, None, None]:
    """Yield the batches of training, epoch after epoch, as one process of pretraining reads them.

    Close the generator: its worker processes do not heed signals.
    """
    loading = PairedData(data, loader, seed).train_dataloader()
    for epoch in itertools.count():
        assert isinstance(loading.batch_sampler, EpochBatches)
        loading.batch_sampler.set_epoch(epoch)
        yield from loading


def bench_views(
    modalities: Mapping[str, Modality],
    views: Views,
    batch: Batch,
    device: torch.device,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure scaling to [0, 1] and both views of a batch: of each sensor alone, and of all."""
    batch = _move(batch, device)
    alone = [(name, {name: modality}) for name, modality in modalities.items()]
    for title, chosen in [*(alone if len(alone) > 1 else []), ("all sensors", modalities)]:

        def make(chosen: Mapping[str, Modality] = chosen) -> None:
            _augment(chosen, views, batch)

        times = measure(make, seconds)
        yield Row(title, len(batch["ids"]), times, memory=peak_memory(make, device))


def bench_loss(
    objectives: Sequence[Objective],
    modalities: Sequence[str],
    batch: int,
    device: torch.device,
    rate: float,
    seconds: float = 3.0,
) -> Iterator[Row]:
    """Measure objectives of different widths, forward and backward, on correlated embeddings.

    Args:
        objectives: are measured one after the other.
        modalities: names of the sensors.
        batch: samples, N.
        device: that computes.
        rate: floating-point operations a second of that device's best float32 matrix product.
        seconds: duration of each measurement.

    Yields:
        A row for each objective with its width "dim", the "views" of a sensor that it compares, and
        its "growth": the time for a dimension relative to the first row, 1 if time is linear in K.
    """
    growth: list[float] = []
    for objective in objectives:
        views = views_compared(objective, modalities)
        step = LossStep(copy.deepcopy(objective).to(device), modalities, batch, device)
        operations = count(step)
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

    def __call__(self) -> None:
        """Compute the loss and the gradients of the embeddings."""
        for z in itertools.chain.from_iterable(self.embeddings.values()):
            z.grad = None
        self.objective(self.embeddings)["loss"].backward()


def views_compared(objective: Objective, modalities: Sequence[str]) -> int:
    """Return how many views of a sensor an objective compares; cross-modal methods take one."""
    step = LossStep(copy.deepcopy(objective), modalities, 4, torch.device("cpu"))
    step()
    views = itertools.chain.from_iterable(step.embeddings.values())
    return -(-sum(z.grad is not None for z in views) // len(modalities))


def _row(step: str, times: Sequence[float], pairs: int, size: int) -> Row:
    # By the mean and not the median: what workers have prepared comes in bursts.
    rate = pairs / statistics.mean(times)
    return Row(step, pairs, times, rate=rate, about={"megabytes": rate * size / 1e6})


def _augment(modalities: Mapping[str, Modality], views: Views, batch: Batch) -> None:
    with torch.no_grad():
        images = {name: m.scale(batch["images"][name]) for name, m in modalities.items()}
        views(images, sample_seeds(batch["ids"], 0, 0))


def _read(data: PairedDataset, index: int) -> None:
    with contextlib.suppress(BadSampleError):
        data.read_bytes(index)


def _move(batch: Batch, device: torch.device) -> Batch:
    images = {name: x.to(device, non_blocking=True) for name, x in batch["images"].items()}
    return {**batch, "images": images}


def _bytes(sample: Sample) -> int:
    return sum(image.nbytes for image in sample["images"].values())
