"""Batches to train and to test on: of labelled pictures, of stored feature maps, of vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Subset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, Sample, SkipBad
from decur.digest import try_digest
from decur.errors import ConfigError
from decur.features import Features, map_names, zeroed
from decur.modality import Modality
from decur.pretrain.data import EpochBatches, ResumableLoader
from decur.signals import ignore_signals
from decur.transfer.heads import FCN
from decur.transfer.splits import Rows
from decur.transfer.tasks import Task

Vectors = NDArray[np.float32]


class EveryBatch(EpochBatches):
    """The batches of pretraining, and the last, smaller one.

    It is dropped only where it holds a single sample: batch statistics need two.
    """

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 1)


class PictureLoader(ResumableLoader):
    """Pictures and labels to train on.

    Attributes:
        seed: of the order.
        identity: what tells these batches from others, by the name of the setting.
    """

    seed: int
    identity: Mapping[str, object]


def picture_loader(
    data: PairedDataset,
    rows: Rows,
    task: Task,
    modalities: Sequence[str],
    settings: LoaderSettings,
    seed: int | None = None,
) -> DataLoader[Batch]:
    """Return batches of some samples of a data set.

    Args:
        data: the data set.
        rows: which samples.
        task: whose label is loaded.
        modalities: which sensors are loaded.
        settings: batches and workers.
        seed: of a random order; None: in order, every sample.

    Raises:
        ConfigError: if training is left with a single sample.
    """
    batch = min(settings.batch_size, len(rows))
    workers = settings.processes()
    used = data.only(modalities, [task.name])
    common: dict[str, Any] = {
        "dataset": Subset(SkipBad(used), rows.tolist()),
        "collate_fn": Collate(
            {name: data.modalities[name] for name in modalities},
            {task.name: task.target},
        ),
        "num_workers": workers,
        "pin_memory": torch.cuda.is_available(),
        # the loader's own draw of a worker seed would otherwise consume the global state
        "generator": torch.Generator().manual_seed(seed or 0),
    }
    if seed is None:
        return DataLoader(batch_size=batch, **common)
    if len(rows) < 2:
        raise ConfigError("label_fraction: training needs 2 samples or more; raise it")
    loader = PictureLoader(
        batch_sampler=EveryBatch(len(rows), batch, seed),
        persistent_workers=workers > 0,
        worker_init_fn=ignore_signals,
        **common,
    )
    loader.seed = seed
    loader.identity = {
        "data": try_digest(used, what="an interrupted training starts anew") or uuid4().hex,
        "training part": rows.tolist(),
        "modalities": list(modalities),
        "loader.batch_size": batch,
    }
    return loader


# -- feature maps of frozen encoders in place of pictures ------------------------------------------


def stored_maps(data: PairedDataset, target: str, seen: Features) -> PairedDataset:
    """Return a data set whose pictures are feature maps: a "sensor" each, its channels the bands.

    Args:
        data: the data set that the maps are of.
        target: the label, a mask.
        seen: the maps, and the masks of all samples.
    """
    return _StoredMaps(data, target, seen)


class _StoredMaps(PairedDataset):  # private, so that --help does not offer it
    def __init__(self, data: PairedDataset, target: str, seen: Features) -> None:
        self.maps, self.masks, self.target = seen.features, seen.masks[target], target
        self.source = seen
        self.modalities = {
            name: Modality(
                name=name.replace("/", "-"),
                bands=tuple(map(str, range(maps.shape[1]))),
                scaling="range",
                size=(maps.shape[2], maps.shape[3]),
            )
            for name, maps in self.maps.items()
        }
        self.ids, self.groups, self.targets = data.ids, data.groups, data.targets
        self.present = {name: np.ones(len(data), dtype=bool) for name in self.maps}  # else zeros

    def digest_parts(self) -> object:
        """Return what the maps were made from, in place of their many bytes."""
        return self.source, self.target

    def read(self, index: int) -> Sample:
        """Read one sample's maps and mask."""
        return {
            "id": self.ids[index],
            "images": {name: torch.from_numpy(zeroed(m[index])) for name, m in self.maps.items()},
            "target": {self.target: torch.from_numpy(self.masks[index].astype(np.int64))},
        }


class OnStoredMaps(nn.Module):
    """An FCN that is given feature maps instead of pictures.

    Args:
        model: whose convolutions are trained.
    """

    def __init__(self, model: FCN) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, images: Mapping[str, Tensor], present: object, size: tuple[int, int]
    ) -> Tensor:
        """Maps by the names of `decur.features.map_names` to (B, outputs, *size)."""
        maps = {
            name: [images[key] for key in map_names(name, self.model.encoder(name))]
            for name in self.model.encoders
        }
        return self.model.classify(maps, size, len(next(iter(images.values()))))


# -- vectors of frozen encoders --------------------------------------------------------------------


def vector_loader(
    x: Vectors, labels: NDArray[Any], name: str, batch_size: int, seed: int
) -> DataLoader[Any]:
    """Return batches of vectors and their labels in a random order.

    Args:
        x: (N, D).
        labels: (N, ...) known labels.
        name: of the label.
        batch_size: samples in a batch.
        seed: of the order.
    """
    vectors = _Vectors(x, labels, name)
    order = RandomSampler(vectors, generator=torch.Generator().manual_seed(seed))
    return DataLoader(
        vectors,
        sampler=BatchSampler(order, min(batch_size, len(x)), drop_last=False),
        batch_size=None,
        generator=torch.Generator().manual_seed(seed),
    )


class _Vectors(Dataset[Any]):
    """Batches of vectors and labels, whole at once: there is nothing to decode."""

    def __init__(self, x: Vectors, labels: NDArray[Any], name: str) -> None:
        self.x, self.labels, self.name = torch.from_numpy(x), torch.from_numpy(labels), name

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        target = {self.name: self.labels[rows]}
        return {"images": {"vectors": self.x[rows]}, "present": {}, "target": target}


class OnVectors(nn.Module):
    """A linear head that is given vectors instead of pictures.

    Args:
        head: that is trained.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Mapping[str, Tensor], present: object, size: object) -> Tensor:
        """`{"vectors": (B, D)}` to (B, outputs)."""
        output: Tensor = self.head(images["vectors"])
        return output
