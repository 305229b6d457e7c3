"""Training a model on labels and testing it: on pictures, on stored feature maps, on vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Subset, TensorDataset

from decur.data import Batch, Collate, LoaderSettings, PairedDataset, Sample, SkipBad
from decur.digest import try_digest
from decur.errors import ConfigError
from decur.features import Features, map_names, zeroed
from decur.memory import require_memory_for_batch
from decur.modality import Modality
from decur.pretrain.data import EpochBatches
from decur.signals import ignore_signals
from decur.transfer.augment import Averaging, mean_colour
from decur.transfer.engine import Engine, PictureLoader, Validation
from decur.transfer.heads import FCN, Fusion, LateFusion
from decur.transfer.settings import FitSettings, TransferSettings
from decur.transfer.splits import Parts, Rows
from decur.transfer.tasks import Kept, Task
from decur.transfer.trainee import Trainee


def train_on_pictures(
    model: Fusion, parts: Parts, settings: TransferSettings, engine: Engine
) -> Kept:
    """Train the head, and the encoders unless frozen, on pictures; test.

    Args:
        model: that is trained.
        parts: samples to train on and to test on.
        settings: with a complete `fit`.
        engine: where it runs.
    """
    data, task, names = parts.data, parts.task, list(model.encoders)
    sensors = [data.modalities[name] for name in names]
    require_memory_for_batch(sensors, settings.loader.batch_size, settings.size)
    batches = _picture_loader(data, parts.train, task, names, settings.loader, settings.seed)
    trainee = Trainee(
        model,
        task,
        settings.fit,
        _steps(settings.fit, batches),
        modalities={name: model.modality(name) for name in names},
        size=settings.size,
        warmup=_warmup(settings.fit, batches),
        averaging=averaging_of(settings, {name: model.modality(name) for name in names}),
    )
    engine.fit(trainee, batches, _validation(data, parts, settings, names))
    if isinstance(model, LateFusion):
        task.finish(model.head)
    tested = _picture_loader(data, parts.test, task, names, settings.loader)
    return engine.test(trainee, tested, len(parts.test))


def _validation(
    data: PairedDataset, parts: Parts, settings: TransferSettings, names: Sequence[str]
) -> Validation | None:
    """Return what scores the validation part after each epoch; None where there is none."""
    if not len(parts.val):
        return None
    batches = _picture_loader(data, parts.val, parts.task, names, settings.loader)
    patience = settings.fit.patience
    return Validation(batches, parts.task, patience=patience, samples=len(parts.val))


def averaging_of(
    settings: TransferSettings, modalities: Mapping[str, Modality]
) -> Averaging | None:
    """Return which versions of a test picture are looked at; None for the picture as it is."""
    if not settings.averages:
        return None
    fill = {name: mean_colour(modality) for name, modality in modalities.items()}
    return Averaging(settings.test_scales, settings.test_flip, settings.test_window, fill)


def train_on_maps(
    model: FCN, seen: Features, parts: Parts, settings: TransferSettings, engine: Engine
) -> Kept:
    """Train an FCN's convolutions on the feature maps of frozen encoders, as on pictures; test.

    Args:
        model: that is trained.
        seen: the feature maps, and the masks.
        parts: samples to train on and to test on.
        settings: with a complete `fit`.
        engine: where it runs.
    """
    task, moments = parts.task, {}
    if settings.fit.standardise:
        moments = {key: _moments(maps, parts.train) for key, maps in seen.features.items()}
    stored = _StoredMaps(parts.data, task.name, seen, moments)
    names = list(stored.modalities)
    here = replace(settings.loader, workers=0)  # reading is a copy; workers would cost more
    batches = _picture_loader(stored, parts.train, task, names, here, settings.seed)
    trainee = _plain_trainee(_OnStoredMaps(model), task, settings.fit, batches)
    here_settings = replace(settings, loader=here)
    engine.fit(trainee, batches, _validation(stored, parts, here_settings, names))
    if moments:  # what is tested and saved takes the maps as they are
        keys = {name: map_names(name, model.encoder(name)) for name in model.encoders}
        model.unstandardise({name: [moments[key] for key in keys[name]] for name in keys})
        stored = _StoredMaps(parts.data, task.name, seen)
    tested = _picture_loader(stored, parts.test, task, names, here)
    return engine.test(trainee, tested, len(parts.test))


def train_on_vectors(
    head: nn.Linear,
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    settings: TransferSettings,
    engine: Engine,
    validated: tuple[NDArray[np.float32], NDArray[Any]] | None = None,
) -> None:
    """Train a linear layer by SGD as in the paper's appendix B.2, without augmentation.

    Args:
        head: the layer, trained in place.
        x: (N, D) vectors of the training part.
        labels: (N, ...) known labels of it.
        task: what they mean.
        settings: with a complete `fit`; a batch is 256 in the paper.
        engine: where it runs.
        validated: vectors and labels that choose the best epoch; None: the last one is kept.

    Raises:
        DivergedError: if the loss is not finite.
    """
    batches = _vector_loader(x, labels, task.name, settings.loader.batch_size, settings.seed)
    validation = None
    if validated is not None:
        whole = _vector_loader(*validated, task.name, len(validated[0]), settings.seed)
        patience = settings.fit.patience
        validation = Validation(whole, task, patience=patience, samples=len(validated[0]))
    trainee = _plain_trainee(_OnVectors(head), task, settings.fit, batches)
    engine.fit(trainee, batches, validation)


def _plain_trainee(
    model: nn.Module, task: Task, settings: FitSettings, batches: DataLoader[Any]
) -> Trainee:
    """Return a trainee whose inputs are neither scaled nor augmented."""
    total, warmup = _steps(settings, batches), _warmup(settings, batches)
    return Trainee(model, task, settings, total, {}, warmup=warmup)


def _steps(settings: FitSettings, batches: DataLoader[Any]) -> int:
    """Return the optimiser steps of the whole training."""
    assert settings.epochs is not None  # settings are complete
    return settings.steps or settings.epochs * len(batches)


def _warmup(settings: FitSettings, batches: DataLoader[Any]) -> int:
    """Return the steps in which the rate rises."""
    return round(settings.warmup_epochs * len(batches))


# -- pictures --------------------------------------------------------------------------------------


class EveryBatch(EpochBatches):
    """The batches of pretraining, and the last, smaller one.

    It is dropped only where it holds a single sample: batch statistics need two.
    """

    def __len__(self) -> int:
        whole, rest = divmod(self.samples, self.batch_size)
        return whole + (rest > 1)


def _picture_loader(
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


class _StoredMaps(PairedDataset):  # private, so that --help does not offer it
    """Feature maps in place of pictures: a "sensor" each, its channels the bands.

    Args:
        data: the data set that the maps are of.
        target: the label, a mask.
        seen: the maps, and the masks of all samples.
        moments: `{name of a map: mean and standard deviation (C,)}`, by which maps are
            standardised; without any they stay as they are.
    """

    def __init__(
        self,
        data: PairedDataset,
        target: str,
        seen: Features,
        moments: Mapping[str, tuple[Tensor, Tensor]] | None = None,
    ) -> None:
        self.maps, self.masks, self.target = seen.features, seen.masks[target], target
        self.source, self.moments = seen, dict(moments or {})
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
        return self.source, self.target, sorted(self.moments)

    def _map(self, name: str, index: int) -> Tensor:
        x = torch.from_numpy(zeroed(self.maps[name][index]))  # (C, H, W)
        if name not in self.moments:
            return x
        mean, std = (moment[:, None, None] for moment in self.moments[name])
        return (x - mean) / std  # of the zeros of an absent sensor, too, as the model takes those

    def read(self, index: int) -> Sample:
        """Read one sample's maps and mask."""
        return {
            "id": self.ids[index],
            "images": {name: self._map(name, index) for name in self.maps},
            "target": {self.target: torch.from_numpy(self.masks[index].astype(np.int64))},
        }


def _moments(maps: NDArray[np.float32], rows: Rows) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel of maps, (C,) each, float32.

    Args:
        maps: (N, C, H, W), NaN where the sensor is absent.
        rows: the samples that count; without one that has the sensor, 0 and 1.
    """
    from sklearn.preprocessing import StandardScaler  # slow to import

    found, channels = StandardScaler(), maps.shape[1]
    for part in np.array_split(rows, -(-len(rows) // 64)):  # maps may be larger than memory
        x = maps[part]
        x = x[~np.isnan(x).all(axis=(1, 2, 3))]  # (n, C, H, W)
        if len(x):
            found.partial_fit(np.moveaxis(x, 1, -1).reshape(-1, channels).astype(np.float64))
    if not hasattr(found, "mean_"):
        return torch.zeros(channels), torch.ones(channels)
    return torch.from_numpy(found.mean_).float(), torch.from_numpy(found.scale_).float()


class _OnStoredMaps(nn.Module):
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
        """Return outputs (B, outputs, *size) of maps by the names of `features.map_names`."""
        maps = {
            name: [images[key] for key in map_names(name, self.model.encoder(name))]
            for name in self.model.encoders
        }
        return self.model.classify(maps, size, batch=len(next(iter(images.values()))))


# -- vectors of frozen encoders --------------------------------------------------------------------


def _vector_loader(
    x: NDArray[np.float32], labels: NDArray[Any], name: str, batch_size: int, seed: int
) -> DataLoader[Any]:
    """Return batches of vectors and their labels in a random order.

    Args:
        x: (N, D).
        labels: (N, ...) known labels.
        name: of the label.
        batch_size: samples in a batch.
        seed: of the order.
    """

    def batch_of(rows: Sequence[Tensor]) -> dict[str, Any]:
        x, target = rows
        return {"images": {"vectors": x}, "present": {}, "target": {name: target}}

    vectors = TensorDataset(torch.from_numpy(x), torch.from_numpy(labels))
    order = RandomSampler(vectors, generator=torch.Generator().manual_seed(seed))
    return DataLoader(
        vectors,
        sampler=BatchSampler(order, min(batch_size, len(x)), drop_last=False),
        batch_size=None,  # a batch is read whole: there is nothing to decode
        collate_fn=batch_of,
        generator=torch.Generator().manual_seed(seed),
    )


class _OnVectors(nn.Module):
    """A linear head that is given vectors instead of pictures.

    Args:
        head: that is trained.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Mapping[str, Tensor], present: object, size: object) -> Tensor:
        """Return the outputs (B, outputs) of `{"vectors": (B, D)}`."""
        output: Tensor = self.head(images["vectors"])
        return output
