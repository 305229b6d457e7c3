"""A linear head on frozen vectors."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from decur.transfer.fit import Engine, Trainee, steps_of
from decur.transfer.settings import FitSettings
from decur.transfer.tasks import Task

log = logging.getLogger(__name__)

STRENGTHS = np.logspace(-2, 6, 9)  # of the ridge, on standardised features
VALIDATION = 0.2  # share of the training part that chooses among them
REPEATS, FEW = 5, 2000  # validation parts that are averaged, where there are few samples


def fit_ridge(
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Linear, float]:
    """Least squares on standardised features, its regularisation chosen on a validation part.

    The validation part is a fifth of the training part, whole groups where there are groups, by
    class where a sample has one class; of fewer than 2,000 samples five such parts are averaged.
    Then all of the training part is fitted.

    Args:
        x: (N, D) features of the training part.
        labels: (N, ...) known labels of it.
        task: what they mean; its main metric chooses.
        groups: (N,) that must not be split, if any.
        seed: of the validation part.

    Returns:
        The layer, for features as they are, and the regularisation.
    """
    aim, features = task.regress(labels), x.astype(np.float64)  # (N, outputs), (N, D)
    truth = torch.from_numpy(labels)
    scores: list[list[float]] = []
    for fit, held in _validation(labels, task, groups, seed):
        scores.append([])
        for strength in STRENGTHS:
            model = _ridge(strength).fit(features[fit], aim[fit])
            output = model.predict(features[held]).reshape(len(held), -1)
            kept = task.keep(torch.from_numpy(output), truth[held])
            scores[-1].append(task.metrics(kept)[task.main])
    means = np.array(scores).mean(axis=0) if scores else np.full(len(STRENGTHS), np.nan)
    if np.isnan(means).all():
        strength = float(STRENGTHS[len(STRENGTHS) // 2])
        log.warning(
            "%d samples are too few to choose the ridge's regularisation; it is %g",
            len(x),
            strength,
        )
    else:
        strength = float(STRENGTHS[np.nanargmax(means)])
    scaler, ridge = (step for _, step in _ridge(strength).fit(features, aim).steps)
    weight = np.atleast_2d(ridge.coef_) / scaler.scale_  # (outputs, D)
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(ridge.intercept_ - weight @ scaler.mean_))
    return layer, strength


def _ridge(strength: float) -> Any:
    return make_pipeline(StandardScaler(), Ridge(strength))


def _validation(
    labels: NDArray[Any], task: Task, groups: NDArray[Any] | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to choose by; none where there are too few samples."""
    count = len(labels)
    options = {
        "n_splits": REPEATS if count < FEW else 1,
        "test_size": VALIDATION,
        "random_state": seed,
    }
    if groups is not None and len(np.unique(groups)) > 1:
        return list(GroupShuffleSplit(**options).split(labels, groups=groups))
    if count < 5:
        return []
    if task.target.kind == "class":
        counts = np.unique(labels, return_counts=True)[1]
        if counts.min() > 1 and VALIDATION * count >= len(counts):
            return list(StratifiedShuffleSplit(**options).split(labels, labels))
    return list(ShuffleSplit(**options).split(labels))


class _Vectors(Dataset[Any]):
    """Batches of features and labels, whole at once: there is nothing to decode."""

    def __init__(self, x: NDArray[np.float32], labels: NDArray[Any], name: str) -> None:
        self.x, self.labels, self.name = torch.from_numpy(x), torch.from_numpy(labels), name

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: list[int]) -> dict[str, Any]:
        target = {self.name: self.labels[rows]}
        return {"images": {"vectors": self.x[rows]}, "present": {}, "target": target}


class _HeadOnly(nn.Module):
    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, images: Mapping[str, Tensor], present: object, size: object) -> Tensor:
        return self.head(images["vectors"])


def fit_sgd(
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    head: nn.Linear,
    engine: Engine,
    settings: FitSettings,
    batch_size: int,
    seed: int = 0,
) -> None:
    """The linear layer as in the paper's appendix B.2, on features without augmentation.

    Args:
        x: (N, D) features of the training part.
        labels: (N, ...) known labels of it.
        task: what they mean.
        head: the layer, trained in place.
        engine: where it runs.
        settings: complete ones.
        batch_size: 256 in the paper.
        seed: of the order.

    Raises:
        DivergedError: if the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    vectors = _Vectors(x, labels, task.name)
    order = RandomSampler(vectors, generator=generator)
    loader: DataLoader[Any] = DataLoader(
        vectors,
        sampler=BatchSampler(order, min(batch_size, len(x)), drop_last=False),
        batch_size=None,
        generator=torch.Generator().manual_seed(seed),
    )
    trainee = Trainee(_HeadOnly(head), task, settings, steps_of(settings, loader), {})
    engine.fit(trainee, loader)
