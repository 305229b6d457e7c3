"""A linear head on frozen vectors."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit, StratifiedShuffleSplit
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from decur.transfer.fit import Engine, Trainee, steps_of, warmup_of
from decur.transfer.settings import FitSettings
from decur.transfer.tasks import Task

log = logging.getLogger(__name__)

Matrix = NDArray[np.float64]
# Standardised features (N, D), labels and a regularisation to (outputs, D) and (outputs,).
Solve = Callable[[Matrix, NDArray[Any], Task, float], tuple[Matrix, Matrix]]

RIDGE = np.logspace(-2, 6, 9)  # penalties on standardised features
LOGISTIC = np.logspace(-5, 3, 9)  # C, the inverse of a penalty, likewise
PATIENCE = 2  # values of C that are worse, after which weaker penalties are not tried
ITERATIONS = 200  # of L-BFGS: more than a penalty that is worth choosing needs
NEVER = -1e9  # bias of a class that has no sample
VALIDATION = 0.2  # share of the training part that chooses among them
REPEATS, FEW = 5, 2000  # validation parts that are averaged, where there are few samples


def fit_ridge(
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Linear, float]:
    """Least squares on standardised features, its penalty chosen on a validation part.

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
        The layer, for features as they are, and the penalty.
    """
    return _fit_chosen(_solve_ridge, RIDGE, len(RIDGE), x, labels, task, groups, seed)


def fit_logistic(
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    groups: NDArray[Any] | None = None,
    seed: int = 0,
) -> tuple[nn.Linear, float]:
    """Multinomial logistic regression on standardised features, one class a sample.

    The penalty is weakened from one that is too strong until two in a row have been worse than the
    best on the validation part: those still weaker take minutes, and overfit.

    Args:
        x: (N, D) features of the training part.
        labels: (N,) known classes of it.
        task: of kind "class".
        groups: (N,) that must not be split, if any.
        seed: of the validation part, which is that of `fit_ridge`.

    Returns:
        The layer, for features as they are, whose softmax gives the probabilities; and scikit-
        learn's C, the inverse of the penalty.
    """
    return _fit_chosen(_solve_logistic, LOGISTIC, PATIENCE, x, labels, task, groups, seed)


def _fit_chosen(
    solve: Solve,
    strengths: Matrix,
    patience: int,
    x: NDArray[np.float32],
    labels: NDArray[Any],
    task: Task,
    groups: NDArray[Any] | None,
    seed: int,
) -> tuple[nn.Linear, float]:
    """Choose a regularisation on validation parts, then fit everything."""
    features, truth = x.astype(np.float64), torch.from_numpy(labels)
    parts = _validation(labels, task, groups, seed)
    means = np.full(len(strengths), np.nan)
    best, worse = -np.inf, 0
    for tried, strength in enumerate(strengths):
        scores = []
        for fit, held in parts:
            weight, bias = _standardised(solve, features[fit], labels[fit], task, strength)
            kept = task.keep(torch.from_numpy(features[held] @ weight.T + bias), truth[held])
            scores.append(task.metrics(kept)[task.main])
        defined = [score for score in scores if not np.isnan(score)]
        means[tried] = np.mean(defined) if defined else np.nan
        worse = worse + 1 if means[tried] < best else 0
        best = np.fmax(best, means[tried])
        if worse == patience:
            break
    if np.isnan(means).all():
        chosen = float(strengths[len(strengths) // 2])
        reason = f"no validation part defines {task.main}"
        if not parts:
            reason = f"{len(x)} samples are too few to choose the probe's regularisation"
        log.warning("%s; the probe's regularisation is %g", reason, chosen)
    else:
        chosen = float(strengths[np.nanargmax(means)])
    weight, bias = _standardised(solve, features, labels, task, chosen)
    layer = nn.Linear(weight.shape[1], len(weight))
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
        layer.bias.copy_(torch.from_numpy(bias))
    return layer, chosen


def _standardised(
    solve: Solve, x: Matrix, labels: NDArray[Any], task: Task, strength: float
) -> tuple[Matrix, Matrix]:
    """Solve on standardised features; (outputs, D) and (outputs,) for features as they are."""
    scaler = StandardScaler().fit(x)
    weight, bias = solve(scaler.transform(x), labels, task, strength)
    weight = weight / scaler.scale_
    return weight, bias - weight @ scaler.mean_


def _solve_ridge(
    x: Matrix, labels: NDArray[Any], task: Task, penalty: float
) -> tuple[Matrix, Matrix]:
    fitted = Ridge(penalty).fit(x, task.regress(labels))
    return fitted.coef_.reshape(-1, x.shape[1]), fitted.intercept_


def _solve_logistic(x: Matrix, labels: NDArray[Any], task: Task, c: float) -> tuple[Matrix, Matrix]:
    weight, bias = np.zeros((task.outputs, x.shape[1])), np.full(task.outputs, NEVER)
    there = np.unique(labels)
    if len(there) == 1:  # nothing to tell apart
        bias[there] = 0
        return weight, bias
    with warnings.catch_warnings():  # stopped early is regularised, too; the validation part judges
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = LogisticRegression(C=c, max_iter=ITERATIONS).fit(x, labels)
    found, offset = fitted.coef_, fitted.intercept_
    if len(there) == 2:  # scikit-learn gives the second class's logit over the first one's
        found, offset = found * [[-0.5], [0.5]], offset * [-0.5, 0.5]
    weight[there], bias[there] = found, offset
    return weight, bias


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
    steps, warmup = steps_of(settings, loader), warmup_of(settings, loader)
    trainee = Trainee(_HeadOnly(head), task, settings, steps, {}, warmup=warmup)
    engine.fit(trainee, loader)
