"""Samples for the analyses: the same ones, in the same order, as often as they are asked for."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.data.selection import evenly_spaced
from decur.explain.base import Watch, unwatched
from decur.explain.model import Checkpoint

_CHUNK = 256  # rows read at a time


class SampleLoader(DataLoader[Batch]):
    """Evenly spaced samples of a data set in their order, batch by batch.

    Args:
        data: any data set.
        samples: at most how many; None for all.
        settings: batches and workers.
        among: indices of the samples to choose from; None for all of the data set.

    Attributes:
        data: the data set.
        indices: of the samples in the data set.
        bad: file and reason of what `encoded` could not read.
    """

    def __init__(
        self,
        data: PairedDataset,
        samples: int | None = None,
        settings: LoaderSettings | None = None,
        among: Sequence[int] | None = None,
    ) -> None:
        self.data, self.settings = data, settings or LoaderSettings()
        pool = range(len(data)) if among is None else among
        spaced = evenly_spaced(len(pool), len(pool) if samples is None else samples)
        self.indices = [int(pool[place]) for place in spaced]
        self.bad: list[tuple[str, str]] = []
        self.kept: weakref.WeakKeyDictionary[Checkpoint, Encoded] = weakref.WeakKeyDictionary()
        super().__init__(
            Subset(SkipBad(data), self.indices),  # type: ignore[arg-type]
            batch_size=min(self.settings.batch_size, 64),
            collate_fn=Collate(data.modalities, data.targets),
            num_workers=self.settings.processes(),
            pin_memory=torch.cuda.is_available(),
            # the loader's own draw of a worker seed would otherwise consume the global state
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def ids(self) -> list[str]:
        """Of the samples, in order."""
        return [self.data.ids[index] for index in self.indices]

    @property
    def groups(self) -> list[str] | None:
        """Of each sample, where the data names groups."""
        groups = self.data.groups
        return None if groups is None else [groups[index] for index in self.indices]

    def some(self, samples: int) -> SampleLoader:
        """At most so many of these samples, evenly spaced."""
        return SampleLoader(self.data, samples, self.settings, self.indices)


@dataclass(frozen=True)
class Encoded:
    """What a checkpoint makes of all samples, in files and not in memory, row for row.

    Args:
        features: `{modality: (N, D) float32}`, memory-mapped; NaN where the sensor is absent.
        embeddings: `{modality: (N, K) float32}`, likewise.
        labels: `{target: (N, ...)}` as `Target` says; masks are left out.
    """

    features: dict[str, NDArray[np.float32]]
    embeddings: dict[str, NDArray[np.float32]]
    labels: dict[str, NDArray[Any]]

    def present(self, *modalities: str) -> NDArray[np.bool_]:
        """Which samples have all of these sensors: (N,)."""
        return np.logical_and.reduce([~np.isnan(self.features[name][:, 0]) for name in modalities])

    def statistics(self, modality: str) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension of the embedding, over all samples.

        Args:
            modality: whose; a sensor that no sample has gives NaN.

        Returns:
            (K,) each, float32.
        """
        rows = np.flatnonzero(self.present(modality))
        embedding, n = self.embeddings[modality], max(len(rows), 1)
        chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
        total = np.zeros(embedding.shape[1])
        squares = np.zeros_like(total)
        for chunk in chunks:
            total += embedding[chunk].sum(0, dtype=np.float64)
        mean = total / n
        for chunk in chunks:
            squares += ((embedding[chunk] - mean) ** 2).sum(0)
        mean[:] = mean if len(rows) else np.nan
        return torch.from_numpy(mean).float(), torch.from_numpy(np.sqrt(squares / n)).float()


def encoded(checkpoint: Checkpoint, loader: SampleLoader, watch: Watch = unwatched) -> Encoded:
    """Features and embeddings of all samples; computed once for a checkpoint and a loader.

    They lie in a temporary folder that goes when the loader does: memory does not grow with the
    data set.

    Args:
        checkpoint: whose encoders.
        loader: the samples.
        watch: shows how far it is.
    """
    if checkpoint in loader.kept:
        return loader.kept[checkpoint]
    folder = Path(tempfile.mkdtemp(prefix="decur-explain-"))
    weakref.finalize(loader, shutil.rmtree, folder, ignore_errors=True)
    rows = len(loader.indices)

    def array(kind: str, name: str, width: int) -> NDArray[np.float32]:
        file = folder / f"{kind}-{name}.npy"
        return np.lib.format.open_memmap(file, mode="w+", dtype=np.float32, shape=(rows, width))

    names = list(checkpoint.modalities)
    features = {name: array("features", name, checkpoint.encoder(name).dim) for name in names}
    embeddings = {name: array("embedding", name, checkpoint.dim) for name in names}
    wanted = [name for name, spec in loader.data.targets.items() if spec.kind != "mask"]
    labels: dict[str, list[NDArray[Any]]] = {name: [] for name in wanted}
    bad: list[tuple[str, str]] = []
    start = 0
    for batch in watch(loader, len(loader)):
        h, z = checkpoint.embed(batch)
        stop = start + len(batch["ids"])
        for name in names:
            features[name][start:stop] = h[name].numpy()
            embeddings[name][start:stop] = z[name].numpy()
        for name in wanted:
            labels[name].append(batch["target"][name].numpy())
        bad += batch["bad"]
        start = stop
    loader.bad = bad
    known = {
        name: np.concatenate(parts) if parts else np.empty(0) for name, parts in labels.items()
    }
    loader.kept[checkpoint] = Encoded(features, embeddings, known)
    return loader.kept[checkpoint]
