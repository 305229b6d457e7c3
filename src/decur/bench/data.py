"""How fast samples come from files to views, and objectives from embeddings to gradients."""

from __future__ import annotations

import contextlib
import copy
import itertools
import statistics
from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from decur.bench.measure import MOST_ROWS, Pretraining, Row, count, make_row, measure, peak_memory
from decur.data import Batch, Collate, LoaderSettings, SkipBad
from decur.devices import send_batch
from decur.errors import BadSampleError, DataError
from decur.objectives.base import Objective
from decur.pretrain.data import EpochBatches, PairedData
from decur.views import sample_seeds


def batches(run: Pretraining, loader: LoaderSettings | None = None) -> Generator[Batch, None, None]:
    """Yield the batches of training, epoch after epoch, as one process of pretraining reads them.

    Close the generator: its worker processes do not heed signals. `loader` replaces the batches
    and workers of the pretraining.
    """
    paired = PairedData(run.data, loader or run.settings.loader, seed=run.settings.seed)
    loading = paired.train_dataloader()
    for epoch in itertools.count():
        assert isinstance(loading.batch_sampler, EpochBatches)
        loading.batch_sampler.set_epoch(epoch)
        yield from loading


def bench_data(run: Pretraining, seconds: float) -> Iterator[Row]:
    """Measure a data set in the order of an epoch of pretraining, each step for some seconds.

    Each step alone runs in this process; the loader and the whole pipeline use worker processes,
    whose start is not counted. Disks count only where the data is larger than the page cache.

    Yields:
        A row for each step.

    Raises:
        ConfigError: if there are fewer samples than one batch needs.
        DataError: if no sample can be read.
    """
    data, loader = run.data.only(targets=()), run.settings.loader  # as pretraining reads it
    order = EpochBatches(len(data), loader.batch_size, run.settings.seed, order=data.order)
    indices = next(iter(order))
    dataset, collate = SkipBad(data), Collate(data.modalities, {})
    samples = [dataset[index] for index in indices]
    readable = [i for i, sample in zip(indices, samples, strict=True) if "bad" not in sample]
    if not readable:
        raise DataError(f"none of {len(samples)} samples can be read: {samples[0].get('bad')}")

    def row(step: str, pairs: int, work: Callable[[], object]) -> Row:
        # By the mean and not the median: what workers have prepared comes in bursts.
        times = measure(work, seconds)
        return make_row(step, pairs, times, pairs_per_second=pairs / statistics.mean(times))

    turns = itertools.cycle(readable)
    both = row("read and decode", 1, lambda: dataset[next(turns)])
    with contextlib.suppress(BadSampleError):  # a Zarr store is a folder
        if data.read_bytes(readable[0]) is not None:
            read = row("read", 1, lambda: data.read_bytes(next(turns)))
            rest = 1 / both["pairs_per_second"] - 1 / read["pairs_per_second"]
            yield read
            # Not measured: by chance or by caches reading alone can be the slower of the two.
            yield make_row("decode (difference)", 1, [max(0.0, rest)])
    yield both
    batch, pairs = collate(samples), len(samples)
    yield row("collate", pairs, lambda: collate(samples))
    if run.device.type != "cpu":
        pinned = {name: x.pin_memory() for name, x in batch["images"].items()}
        yield row(f"transfer to {run.device}", pairs, lambda: send_batch(pinned, run.device))
    augment = view_maker(run, list(data.modalities))
    batch["images"] = send_batch(batch["images"], run.device)
    yield row("views", pairs, lambda: augment(batch))
    with contextlib.closing(batches(run)) as stream:
        yield row(f"loader, {loader.processes()} workers", pairs, lambda: next(stream))
        yield row("whole pipeline", pairs, lambda: augment(next(stream)))


def bench_views(run: Pretraining, seconds: float) -> list[Row]:
    """Measure scaling to [0, 1] and both views of a batch: of each sensor alone, and of all.

    Where there are more sensors than a table has rows, the fastest are measured together.
    """
    batch = next(batches(run, LoaderSettings(run.settings.loader.batch_size, workers=0)))
    batch["images"] = send_batch(batch["images"], run.device)

    def row(title: str, sensors: Sequence[str]) -> Row:
        augment = view_maker(run, sensors)
        times = measure(lambda: augment(batch), seconds)
        memory = peak_memory(lambda: augment(batch), run.device)
        return make_row(title, len(batch["ids"]), times, memory=memory)

    names = list(run.data.modalities)
    rows = [row(name, [name]) for name in names if len(names) > 1]
    if len(rows) >= MOST_ROWS:
        rows.sort(key=lambda found: -found["seconds"])
        fastest = [found["name"] for found in rows[MOST_ROWS - 2 :]]
        rows[MOST_ROWS - 2 :] = [row(f"{len(fastest)} others", fastest)]
    return [*rows, row("all sensors", names)]


def view_maker(run: Pretraining, sensors: Sequence[str]) -> Callable[[Batch], object]:
    """Return what makes the two views of some sensors of a batch, as a training step does."""
    modalities = {name: run.data.modalities[name] for name in sensors}
    views = run.settings.views.build(modalities, channels_last=run.settings.channels_last)

    @torch.no_grad()
    def augment(batch: Batch) -> object:
        sent = send_batch({name: batch["images"][name] for name in sensors}, run.device)
        images = {name: modalities[name].scale(x) for name, x in sent.items()}
        return views(images, sample_seeds(batch["ids"], run.settings.seed, epoch=0))

    return augment


def bench_loss(run: Pretraining, dims: Sequence[int], best: float, seconds: float) -> Iterator[Row]:
    """Measure the objective at different widths K, forward and backward.

    Args:
        run: the pretraining.
        dims: widths; that of the pretraining where there are none.
        best: operations a second of the device's best matrix product, see `matmul_rate`.
        seconds: duration of each measurement.

    Yields:
        A row for each width with "dim", which is K, and "growth": the time for a dimension relative
        to the first row, 1 if time is linear in K.
    """
    batch, sensors = run.settings.loader.batch_size, list(run.data.modalities)
    kind, first = type(run.objective), 0.0
    chosen = [kind(**{**run.objective.made_of, "dim": dim}) for dim in dims] or [run.objective]
    for objective in chosen:
        dim, step = objective.dim, loss_step(objective, sensors, batch, run.device)
        operations = count(step)
        times, memory = measure(step, seconds), peak_memory(step, run.device)
        row = make_row(f"{kind.__name__} {batch} x {dim}", batch, times, memory=memory, dim=dim)
        each = row["seconds"] / dim
        first = first or each  # of the first width
        yield row | {"operations": operations, "floor": operations / best, "growth": each / first}


def loss_step(
    objective: Objective, sensors: Sequence[str], batch: int, device: torch.device
) -> Callable[[], int]:
    """Return a function that computes an objective and all gradients of it.

    The embeddings (N, K) share half of their variance. The function returns how many views of a
    sensor the objective compares.
    """
    objective = copy.deepcopy(objective).to(device)
    generator = torch.Generator().manual_seed(0)
    scene = torch.randn(batch, objective.dim, generator=generator)  # (N, K)
    noise = (torch.randn(scene.shape, generator=generator) for _ in sensors for _ in range(2))
    views = [(scene + x).to(device).requires_grad_() for x in noise]
    embeddings = dict(zip(sensors, zip(views[::2], views[1::2], strict=True), strict=True))

    def step() -> int:
        objective(embeddings)["loss"].backward()
        compared = sum(z.grad is not None for z in views)
        for z in views:
            z.grad = None
        return -(-compared // len(sensors))

    return step
