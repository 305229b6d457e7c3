"""`decur bench data`: how fast each step from files to views is, alone and as a pipeline."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from decur.config import Parser
from decur.data import Batch, Collate, PackedPairs, PairedDataset, Sample, SkipBad
from decur.errors import ConfigError, DataError
from decur.pretrain.loading import EpochBatches, ignore_signals
from decur.pretrain.settings import LoaderSettings, ViewSettings
from decur.views import Views, sample_seeds


@dataclass(frozen=True)
class Speed:
    """What one step reaches.

    Args:
        step: its name.
        pairs: samples a second.
        megabytes: of pictures a second.
    """

    step: str
    pairs: float
    megabytes: float


def bench_data(
    data: PairedDataset,
    loader: LoaderSettings | None = None,
    views: ViewSettings | None = None,
    device: torch.device | str = "cpu",
    seconds: float = 3.0,
) -> Iterator[Speed]:
    """Measure a data set, in the order of an epoch of pretraining.

    Each step alone runs in this process; the loader and the pipeline use worker processes, and
    their start is not counted.

    Args:
        data: any data set.
        loader: batches and workers.
        views: the augmented views.
        device: where views are made.
        seconds: how long each step is measured; the first pass over the samples fills the page
            cache, so that disks count only where the data is larger than what was read before.

    Yields:
        The speed of each step, as soon as it is known.

    Raises:
        ConfigError: if there are fewer samples than one batch needs.
        DataError: if no sample can be read.
    """
    loader, views = loader or LoaderSettings(), views or ViewSettings()
    device = torch.device(device)
    batches = EpochBatches(len(data), loader.batch_size, seed=0, order=data.order)
    indices = [index for batch in itertools.islice(batches, 8) for index in batch]
    whole = SkipBad(data)
    samples = [whole[index] for index in indices[: loader.batch_size]]
    size = sum(map(_bytes, samples)) / len(samples) / 1e6
    if not size:
        raise DataError(f"none of {len(samples)} samples can be read: {samples[0].get('bad')}")

    def speed(step: str, work: Callable[[], int]) -> Speed:
        pairs = _rate(work, seconds, device)
        return Speed(step, pairs, pairs * size)

    turns = itertools.cycle(indices)
    if isinstance(data, PackedPairs):
        yield speed("read", lambda: len(data.read_bytes(next(turns))) and 1)
    yield speed("read and decode", lambda: len(whole[next(turns)]) and 1)
    collate = Collate(data.modalities, data.targets)
    yield speed("collate", lambda: len(collate(samples)["ids"]))
    batch = collate(samples)
    if device.type != "cpu":
        pinned = {name: x.pin_memory() for name, x in batch["images"].items()}
        yield speed(
            f"transfer to {device}", lambda: len(_move({**batch, "images": pinned}, device))
        )
    make = Views(data.modalities, views.size, views.shared_geometry, views.augment)

    def augment(batch: Batch) -> int:
        images = {name: m.scale(batch["images"][name]) for name, m in data.modalities.items()}
        with torch.no_grad():
            make(images, sample_seeds(batch["ids"], 0, 0))
        return len(batch["ids"])

    there: Batch = {**batch, "images": _move(batch, device)["images"]}
    yield speed("views", lambda: augment(there))
    workers = loader.processes()
    stream = _forever(whole, batches, collate, loader)
    yield speed(f"loader, {workers} workers", lambda: len(next(stream)["ids"]))
    yield speed("whole pipeline", lambda: augment(_move(next(stream), device)))


def _forever(
    whole: SkipBad, batches: EpochBatches, collate: Collate, settings: LoaderSettings
) -> Iterator[Batch]:
    workers = settings.processes()
    loader: DataLoader[Sample] = DataLoader(
        whole,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator(),
    )
    for epoch in itertools.count():
        batches.set_epoch(epoch)
        yield from iter(loader)


def _move(batch: Batch, device: torch.device) -> Batch:
    images = {name: x.to(device, non_blocking=True) for name, x in batch["images"].items()}
    return {**batch, "images": images}


def _bytes(sample: Sample) -> int:
    return sum(image.nbytes for image in sample["images"].values())


def _rate(work: Callable[[], int], seconds: float, device: torch.device) -> float:
    """Pairs a second, after one turn to warm up."""
    work()
    _wait(device)
    start, pairs = time.perf_counter(), 0
    while True:
        pairs += work()
        if time.perf_counter() - start >= seconds:
            _wait(device)
            return pairs / (time.perf_counter() - start)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_ABOUT = (
    "Pairs a second of each step from files to augmented views, alone and as the pipeline of "
    "pretraining, so that one sees which part starves the GPU. Options as for pretraining: "
    "decur bench data --data PackedPairs --data.root FOLDER --loader.workers 8"
)


def main(arguments: Sequence[str]) -> None:
    """Run `decur bench ARGUMENTS`.

    Raises:
        DecurError: for whatever a person can mend.
    """
    arguments = list(arguments)
    if arguments[:1] == ["data"]:
        del arguments[0]
    elif not arguments or not arguments[0].startswith("-"):
        raise ConfigError("decur bench: say what; there is `decur bench data`")
    parser = Parser("decur bench data", _ABOUT)
    parser.add_config()
    parser.add_argument("--data", type=PairedDataset, help="What is read.")
    parser.add_class_arguments(LoaderSettings, "loader")
    parser.add_class_arguments(ViewSettings, "views")
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=str, default=default, help="Where views are made.")
    parser.add_argument("--seconds", type=float, default=3.0, help="Measured, for each step.")
    parser.set_defaults({"data": {"class_path": "decur.data.PairedFolder"}})
    made = parser.instantiate_classes(parser.parse(arguments))
    try:
        device = torch.empty(0, device=made.device).device
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: {made.device!r} cannot be used ({reason})") from error
    console = Console(soft_wrap=True)
    console.print(f"data        {made.data.describe()}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("step", "pairs/s", "MB/s"):
        table.add_column(column, justify="left" if column == "step" else "right")
    for found in bench_data(made.data, made.loader, made.views, device, made.seconds):
        table.add_row(found.step, f"{found.pairs:,.0f}", f"{found.megabytes:,.0f}")
    console.print(table)
