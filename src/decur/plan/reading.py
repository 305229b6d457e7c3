"""What reading costs: some samples in this process, and more through the loader's workers."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.errors import DataError
from decur.pretrain import PairedData

LEAST = 2  # samples of a batch: batch statistics need two
_EXAMPLES = 32  # samples that a batch is made of, over and over: reading more would take long
_READ = 16  # samples of a batch while reading is measured: it tells sooner than a large one


@dataclass(frozen=True)
class Reading:
    """What reading costs.

    Args:
        rate: samples a second that the loader's workers give.
        alone: samples a second that one process reads.
        pictures: bytes of a sample's pictures.
        files: bytes that are read from files for a sample; None where the system does not count
            them. What is mapped into memory does not count.
        workers: reading processes.
    """

    rate: float
    alone: float
    pictures: float
    files: float | None
    workers: int


def measure_reading(
    data: PairedDataset, loader: LoaderSettings, seed: int, seconds: float
) -> tuple[Reading, Batch]:
    """Read samples in this process and through the loader, both for half of the time.

    Args:
        data: what is read.
        loader: its workers; batches are small ones.
        seed: of the order.
        seconds: how long it takes, about, the start of the workers not counted.

    Returns:
        What was measured, and some samples, those with all sensors preferred.

    Raises:
        DataError: if no sample can be read.
    """
    data = data.only(targets=())  # as pretraining reads it
    whole = np.logical_and.reduce([data.present[name] for name in data.modalities])
    indices = np.random.default_rng(seed).permutation(len(data))
    indices = np.concatenate([indices[whole[indices]], indices[~whole[indices]]])
    samples, dataset = [], SkipBad(data)
    dataset[int(indices[0])]  # opens files, imports readers
    before, start = _read_bytes(), time.perf_counter()
    for index in indices[:_EXAMPLES]:
        samples.append(dataset[int(index)])
        if len(samples) >= 2 * LEAST and time.perf_counter() - start > seconds / 2:
            break
    taken, after = time.perf_counter() - start, _read_bytes()
    there = [sample for sample in samples if sample["images"]]
    if len(there) < LEAST:
        raise DataError(f"{len(there)} of {len(samples)} samples can be read")
    batch = Collate(data.modalities, {})(there)
    reading = Reading(
        _loader_rate(data, loader, seed, seconds / 2),
        len(samples) / taken,
        sum(x.nbytes for x in batch["images"].values()) / len(there),
        None if before is None or after is None else (after - before) / len(samples),
        loader.processes(),
    )
    return reading, batch


def _loader_rate(data: PairedDataset, loader: LoaderSettings, seed: int, seconds: float) -> float:
    size = min(_READ, loader.batch_size, len(data))
    paired = PairedData(data, dataclasses.replace(loader, batch_size=size), seed)
    batches = _epochs(paired)
    # The workers begin together: what they made before the first was asked again does not count.
    for _ in range(max(1, loader.processes())):
        next(batches)
    start, read = time.perf_counter(), 0
    while True:
        read += len(next(batches)["ids"])
        if time.perf_counter() - start >= seconds:
            return read / (time.perf_counter() - start)


def _epochs(paired: PairedData) -> Iterator[Batch]:
    batches = paired.train_dataloader()
    for epoch in itertools.count():
        batches.batch_sampler.set_epoch(epoch)  # type: ignore[union-attr]
        yield from batches


def _read_bytes() -> int | None:
    """Bytes that this process has read from files; None where the system does not tell."""
    try:
        lines = Path("/proc/self/io").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("rchar")), None)


def tile(batch: Batch, samples: int) -> Batch:
    """A batch of another size, of the same samples over and over."""
    rows = torch.arange(samples) % len(batch["ids"])
    return {
        "images": {name: x[rows] for name, x in batch["images"].items()},
        "present": {name: x[rows] for name, x in batch["present"].items()},
        "target": {},
        "ids": [batch["ids"][int(row)] for row in rows],
        "bad": [],
    }
