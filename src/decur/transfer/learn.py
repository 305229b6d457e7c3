"""From a split and a model to what the task keeps of the test part."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from decur.data import LoaderSettings, PairedDataset
from decur.transfer.averaging import Averaging
from decur.transfer.fit import Engine, Trainee, steps_of, warmup_of
from decur.transfer.loading import image_loader
from decur.transfer.maps import OnStoredMaps, stored_maps
from decur.transfer.models import FCN, Fusion, LateFusion
from decur.transfer.probe import fit_logistic, fit_ridge, fit_sgd
from decur.transfer.settings import FitSettings
from decur.transfer.splits import Rows
from decur.transfer.survey import Survey
from decur.transfer.tasks import Kept, Task


@dataclass(frozen=True)
class Learning:
    """What is learned from what.

    Args:
        data: the data set.
        task: the label.
        train: rows to train on.
        test: rows to test on.
        settings: complete ones.
        loader: batches and workers.
        engine: where it runs.
        size: height and width that pictures are resized to; None for their own.
        seed: of validation parts, order and augmentation.
        averaging: what a mask that is tested is the mean of.
    """

    data: PairedDataset
    task: Task
    train: Rows
    test: Rows
    settings: FitSettings
    loader: LoaderSettings
    engine: Engine
    size: int | None
    seed: int
    averaging: Averaging = field(default_factory=Averaging)

    def probe(self, model: LateFusion, seen: Survey, kind: str) -> tuple[float | None, Kept]:
        """Learn a linear head on the vectors of frozen encoders.

        Args:
            model: whose head is learned.
            seen: vectors and labels.
            kind: "ridge", "logistic" or "sgd".

        Returns:
            The regularisation that was chosen, none for "sgd"; and what is kept of the test part.
        """
        labels, x = seen.labels[self.train], _vectors(seen, model, self.train)
        strength: float | None = None
        if kind == "sgd":
            fit_sgd(
                *(x, labels, self.task, model.head, self.engine, self.settings),
                *(self.loader.batch_size, self.seed),
            )
        else:
            names = self.data.groups
            groups = np.array(names)[self.train] if names is not None else None
            fit = fit_logistic if kind == "logistic" else fit_ridge
            model.head, strength = fit(x, labels, self.task, groups, self.seed)
        with torch.no_grad():
            output = model.head(torch.from_numpy(_vectors(seen, model, self.test)))
        truth = torch.from_numpy(seen.labels[self.test])
        return strength, self.task.keep(output, truth, len(self.test))

    def train_on_maps(self, model: FCN, seen: Survey) -> Kept:
        """Train an FCN's convolutions on the feature maps of frozen encoders, as on pictures."""
        stored = stored_maps(self.data, self.task.name, seen)
        names = list(stored.modalities)
        here = replace(self.loader, workers=0)  # reading is a copy; workers would cost more
        batches = image_loader(stored, self.train, self.task, names, here, self.seed)
        steps = steps_of(self.settings, batches)
        warmup = warmup_of(self.settings, batches)
        trainee = Trainee(OnStoredMaps(model), self.task, self.settings, steps, {}, warmup=warmup)
        self.engine.fit(trainee, batches)
        tested = image_loader(stored, self.test, self.task, names, here)
        return self.engine.test(trainee, tested, len(self.test))

    def train_on_pictures(self, model: Fusion) -> Kept:
        """Train the head, and the encoders unless frozen; what is kept of the test part."""
        names = list(model.encoders)
        batches = image_loader(self.data, self.train, self.task, names, self.loader, self.seed)
        trainee = Trainee(
            model,
            self.task,
            self.settings,
            steps_of(self.settings, batches),
            {name: model.modality(name) for name in names},
            self.size,
            warmup_of(self.settings, batches),
            self.averaging,
        )
        self.engine.fit(trainee, batches)
        if isinstance(model, LateFusion):
            self.task.finish(model.head)
        tested = image_loader(self.data, self.test, self.task, names, self.loader)
        return self.engine.test(trainee, tested, len(self.test))


def _vectors(seen: Survey, model: Fusion, rows: Rows) -> NDArray[Any]:
    return np.concatenate([seen.features[name][rows] for name in model.encoders], axis=1)
