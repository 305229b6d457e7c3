"""Labelled pictures in batches, to train on and to test on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

import torch
from torch.utils.data import DataLoader, Subset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, SkipBad
from decur.digest import try_digest
from decur.errors import ConfigError
from decur.pretrain.data import EpochBatches, ResumableLoader, ignore_signals
from decur.transfer.splits import Rows
from decur.transfer.tasks import Task


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
        known_by: what tells these batches from others, by the name of the setting.
    """

    seed: int
    known_by: Mapping[str, object]


def image_loader(
    data: PairedDataset,
    rows: Rows,
    task: Task,
    modalities: Sequence[str],
    settings: LoaderSettings,
    seed: int | None = None,
) -> DataLoader[Batch]:
    """Batches of some samples of a data set.

    Args:
        data: the data set.
        rows: which samples.
        task: whose label is loaded.
        modalities: which sensors are.
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
    loader.known_by = {
        "data": try_digest(used, what="an interrupted training starts anew") or uuid4().hex,
        "training part": rows.tolist(),
        "modalities": list(modalities),
        "loader.batch_size": batch,
    }
    return loader
