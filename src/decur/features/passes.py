"""A pass over a data set: samples in batches, a row for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from tempfile import TemporaryFile, gettempdir
from typing import IO, TypeVar, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.data.selection import evenly_spaced
from decur.encoders.base import evaluating
from decur.features.model import FeatureBatch, FeatureModel
from decur.features.rows import Columns, Features, LabelRows, refuse_rows_not_finite, writing_rows
from decur.signals import ignore_signals
from decur.terminal import Watch

Item = TypeVar("Item")
_MOST = 64  # samples of a batch: more do not make an encoder faster


class SampleLoader(DataLoader[Batch]):
    """Evenly spaced samples of a data set in their order, batch by batch.

    Args:
        data: any data set; its `only` says which sensors and labels are read.
        samples: at most how many; None for all.
        settings: batches, at most 64 samples each, and workers.
        among: indices of the samples to choose from; None for all of the data set.

    Attributes:
        data: the data set.
        indices: of the samples in the data set.
        bad: file and reason of what the last pass could not read.
        kept: features of these samples by model, where a caller keeps them.
    """

    def __init__(
        self,
        data: PairedDataset,
        samples: int | None = None,
        *,
        settings: LoaderSettings | None = None,
        among: Sequence[int] | None = None,
    ) -> None:
        self.data, self.settings = data, settings or LoaderSettings()
        pool = range(len(data)) if among is None else among
        spaced = evenly_spaced(len(pool), len(pool) if samples is None else samples)
        self.indices = [int(pool[place]) for place in spaced]
        self.bad: list[tuple[str, str]] = []
        self.kept: WeakKeyDictionary[nn.Module, Features] = WeakKeyDictionary()
        wanted = data.modalities if data.wanted is None else data.wanted
        modalities = {name: m for name, m in data.modalities.items() if name in wanted}
        super().__init__(
            cast(Dataset[Batch], Subset(SkipBad(data), self.indices)),
            batch_size=min(self.settings.batch_size, _MOST),
            collate_fn=Collate(modalities, data.targets),
            num_workers=self.settings.processes(),
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=ignore_signals,
            # the loader's own draw of a worker seed would otherwise consume the global state
            generator=torch.Generator().manual_seed(0),
        )

    @property
    def ids(self) -> list[str]:
        """Names of the samples, in order."""
        return [self.data.ids[index] for index in self.indices]

    @property
    def groups(self) -> list[str] | None:
        """The group of each sample, where the data names groups."""
        groups = self.data.groups
        return None if groups is None else [groups[index] for index in self.indices]

    def some(self, samples: int) -> SampleLoader:
        """Return a loader of at most so many of these samples, evenly spaced."""
        return SampleLoader(self.data, samples, settings=self.settings, among=self.indices)


def each_batch(
    model: nn.Module,
    loader: SampleLoader,
    *,
    make: Callable[[Batch], Item],
    watch: Watch | None = None,
) -> Iterator[Item]:
    """Yield what is made of one batch after another, in the order of the samples.

    Args:
        model: on the device where it shall run; in evaluation mode meanwhile.
        loader: the samples.
        make: what the model makes of a batch, without gradients.
        watch: shows how far it is.
    """
    loader.bad = []
    with evaluating(model):
        for batch in watch(loader, len(loader)) if watch is not None else loader:
            loader.bad += batch["bad"]
            with torch.no_grad():
                made = make(batch)
            yield made


def iterate(
    model: FeatureModel, loader: SampleLoader, *, maps: bool = False, watch: Watch | None = None
) -> Iterator[FeatureBatch]:
    """Yield the rows of one batch after another, in the order of the samples.

    Args:
        model: on the device where it shall run; in evaluation mode meanwhile.
        loader: the samples.
        maps: give feature maps in place of features and embeddings.
        watch: shows how far it is.

    Raises:
        DataError: if a row is not finite, naming the sample.
    """

    def rows(batch: Batch) -> FeatureBatch:
        found = model.rows(batch, maps)
        _refuse_not_finite(found)
        return found

    return each_batch(model, loader, make=rows, watch=watch)


def _refuse_not_finite(rows: FeatureBatch) -> None:
    for kind, arrays in (("features", rows.features), ("embeddings", rows.embeddings)):
        for key, values in arrays.items():
            has = rows.present[key.partition("/")[0]].numpy()  # (B,)
            ids = [name for name, there in zip(rows.ids, has, strict=True) if there]
            refuse_rows_not_finite(values.numpy()[has], ids, f"{kind} of {key!r}")


def compute_features(
    model: FeatureModel,
    loader: SampleLoader,
    *,
    maps: bool = False,
    on_disk: bool = False,
    watch: Watch | None = None,
) -> Features:
    """Return the rows of all samples.

    Args:
        model: see `iterate`.
        loader: the samples.
        maps: give feature maps and masks in place of features and embeddings.
        on_disk: put the rows into temporary files without a name, so that memory does not grow
            with the data set.
        watch: shows how far it is.
    """
    rows = iterate(model, loader, maps=maps, watch=watch)
    return collect(rows, model, loader=loader, maps=maps, on_disk=on_disk)


def collect(
    batches: Iterable[FeatureBatch],
    model: FeatureModel,
    *,
    loader: SampleLoader,
    maps: bool = False,
    on_disk: bool = False,
) -> Features:
    """Return all rows that `iterate` yields for a model and a loader; see `compute_features`."""
    targets = loader.data.targets
    masks = {name: spec for name, spec in targets.items() if maps and spec.kind == "mask"}
    columns = Columns(len(loader.indices), masks, _open_temporary if on_disk else None)
    labels = LabelRows(targets)
    for batch in batches:
        with writing_rows(gettempdir()):
            columns.add(batch)
        labels.add(batch)
    found = columns.arrays()
    if not loader.indices:
        found = {
            "features": {n: np.empty((0, model.encoder(n).dim)) for n in model.encoders},
            "embeddings": {n: np.empty((0, model.dim)) for n in model.projectors},
        }
    return Features(
        features=found.get("features", {}),
        embeddings=found.get("embeddings", {}),
        labels=labels.arrays(),
        masks=found.get("masks", {}),
        bad=loader.bad,
    )


def _open_temporary(key: object) -> IO[bytes]:
    return TemporaryFile()  # goes with the array
