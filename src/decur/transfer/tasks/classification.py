"""Labels of one class a sample, or of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    multilabel_soft_margin_loss,
)

from decur.devices import send
from decur.scores import score
from decur.transfer.settings import FitDefaults
from decur.transfer.tasks.base import (
    LETTERS,
    TASKS,
    Array,
    Kept,
    Task,
    balanced,
    draw_bars,
    draw_confusion,
)

if TYPE_CHECKING:
    from decur.plotting import Figure

_PAPER = FitDefaults("sgd", lr=0.05, frozen_lr=0.5, weight_decay=0.0)  # appendix B.2


def average_precision(truth: Array, output: Array, average: str = "macro") -> float:
    """Return scikit-learn's average precision, whose sums come out a digit above 1."""
    return min(1.0, float(average_precision_score(truth, output, average=average)))


@TASKS.register("class")
class SingleLabel(Task):
    """One class a sample: cross-entropy; accuracy, balanced accuracy and macro F1."""

    measures: ClassVar = {
        "accuracy": "share of samples that are right",
        "balanced_accuracy": "share of samples that are right, averaged over classes",
        "macro_F1": "F1 averaged over classes",
    }
    main = "accuracy"
    averages: ClassVar = {"balanced_accuracy": "recall", "macro_F1": "F1"}
    says = "class"
    fit_defaults = _PAPER
    probes = ("ridge", "logistic", "sgd")
    usual_probe = "logistic"
    solved_as = "class"

    def missing_classes(self, labels: Array) -> list[str]:
        """Return the names of classes without a sample."""
        counts = np.bincount(labels, minlength=self.outputs)
        return [self.target.classes[i] for i in np.flatnonzero(counts == 0)]

    weights: Tensor | None = None  # (K,) of the classes

    def weigh(self, labels: Array) -> None:
        """See `Task.weigh`."""
        self.weights = torch.from_numpy(balanced(np.bincount(labels, minlength=self.outputs)))

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of (B, K) and (B,), a mean, weighed where there are weights."""
        weights = None if self.weights is None else send(self.weights, output.device)
        return cross_entropy(output.float() if weights is not None else output, labels, weights)

    def metrics(self, kept: Kept) -> dict[str, float]:
        """Return `accuracy`, `balanced_accuracy` over the classes there are, and `macro_F1`.

        The latter is over the classes that are there or predicted.
        """
        matrix = self._confusion(kept)
        f1, recall = _f1_and_recall(matrix)
        return {
            "accuracy": float(np.trace(matrix) / matrix.sum()),
            "balanced_accuracy": float(np.nanmean(recall)),
            "macro_F1": float(np.nanmean(f1)),
        }

    def _confusion(self, kept: Kept) -> NDArray[np.int64]:
        """Return how many samples of each class got each answer, (K, K) true by predicted."""
        cell = kept["truth"] * self.outputs + kept["output"].argmax(axis=1)
        return np.bincount(cell, minlength=self.outputs**2).reshape(self.outputs, -1)

    def trivial(self, kept: Kept) -> Kept:
        """Predict the most frequent class for every sample."""
        counts = np.bincount(kept["truth"], minlength=self.outputs)
        answer = np.eye(self.outputs)[counts.argmax()]
        return {**kept, "output": np.tile(answer, (len(kept["truth"]), 1))}

    def guesses(self, kept: Kept) -> set[int]:
        """Return the classes that are predicted for some sample."""
        return set(kept["output"].argmax(axis=1).tolist())

    def shows(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which class each sample has, (N, K)."""
        return np.asarray(kept["truth"][:, None] == np.arange(self.outputs))

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Return F1 and recall of each class, NaN without a test sample."""
        matrix = self._confusion(kept)
        columns = (*_f1_and_recall(matrix), matrix.sum(axis=1))
        return {
            name: {"F1": float(f1), "recall": float(recall), "n": int(count)}
            for name, f1, recall, count in zip(self.target.classes, *columns, strict=True)
        }

    def answers(self, output: Tensor, *, least_squares: bool = False) -> Tensor:
        """Return the probability of each class; of least squares a score, which is none."""
        if not least_squares:
            return output.softmax(dim=1)
        shares = _shares(output)
        return shares / shares.sum(dim=1, keepdim=True).clamp_min(1e-6)

    def columns(self, answer: Array) -> list[tuple[str, Any]]:
        """Return the most probable class, and the probability of each."""
        return [("class", self.classes[int(answer.argmax())]), *_probabilities(self, answer)]

    def words(self, answer: Array, *, least_squares: bool = False) -> str:
        """Return the most probable class, and how probable it is; the score of a ridge."""
        name, value = self.classes[int(answer.argmax())][:LETTERS], answer.max()
        return f"{name}, score {value:.2f}" if least_squares else f"{name} {100 * value:.0f} %"

    def draw(self, kept: Kept) -> Figure:
        """Draw the confusion matrix."""
        return draw_confusion(self._confusion(kept), self.target.classes)


@TASKS.register("multilabel")
class MultiLabel(Task):
    """Any number of classes a sample: soft-margin loss (appendix B.2); mean average precision."""

    measures: ClassVar = {
        "mAP_micro": "average precision over all decisions",
        "mAP_macro": "average precision averaged over classes",
    }
    main = "mAP_micro"
    averages: ClassVar = {"mAP_macro": "AP"}
    says = "flags"
    fit_defaults = _PAPER
    probes = ("ridge", "sgd")
    usual_probe = "ridge"
    solved_as = "multilabel"

    def missing_classes(self, labels: Array) -> list[str]:
        """Return the names of classes without a sample."""
        return [self.target.classes[i] for i in np.flatnonzero(labels.sum(axis=0) == 0)]

    weights: Tensor | None = None  # (2, K) of a class that is absent, and present

    def weigh(self, labels: Array) -> None:
        """Let present and absent weigh half each, class by class; see `Task.weigh`."""
        present = labels.sum(axis=0)
        counts = np.stack([len(labels) - present, present])  # (2, K)
        self.weights = torch.from_numpy(np.stack([balanced(c) for c in counts.T], axis=1))

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the soft-margin loss of (B, K) and (B, K)."""
        if self.weights is None:
            return multilabel_soft_margin_loss(output, labels)
        absent, present = send(self.weights, output.device)
        weight = torch.where(labels > 0, present, absent)  # (B, K)
        return binary_cross_entropy_with_logits(output.float(), labels.float(), weight)

    def metrics(self, kept: Kept) -> dict[str, float]:
        """Return `mAP_micro` over all decisions, `mAP_macro` over the classes some sample shows."""
        truth, output = kept["truth"], kept["output"]
        if not truth.any():
            return {"mAP_micro": np.nan, "mAP_macro": np.nan}
        return {
            "mAP_micro": average_precision(truth, output, average="micro"),
            "mAP_macro": score(output, truth, self.known_as),
        }

    def trivial(self, kept: Kept) -> Kept:
        """Predict the frequency of each class for every sample."""
        truth = kept["truth"]
        return {**kept, "output": np.tile(truth.mean(axis=0, dtype=np.float64), (len(truth), 1))}

    def shows(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which classes each sample shows, (N, K)."""
        return np.asarray(kept["truth"] > 0)

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Average precision of each class, NaN where no sample shows it."""
        truth, output = kept["truth"], kept["output"]
        return {
            name: {
                "AP": average_precision(truth[:, i], output[:, i]) if truth[:, i].any() else np.nan,
                "n": int(truth[:, i].sum()),
            }
            for i, name in enumerate(self.target.classes)
        }

    def answers(self, output: Tensor, *, least_squares: bool = False) -> Tensor:
        """Return the probability of each class by itself; of least squares a score."""
        return _shares(output) if least_squares else output.sigmoid()

    def columns(self, answer: Array) -> list[tuple[str, Any]]:
        """Return whether a sample shows each class, and the probability of each."""
        flags = zip(self.classes, (answer[:, 0, 0] > 0.5).tolist(), strict=True)
        return [*flags, *_probabilities(self, answer)]

    def words(self, answer: Array, *, least_squares: bool = False) -> str:
        """Return the classes that a sample shows."""
        there = [name for name, value in zip(self.classes, answer, strict=True) if value > 0.5]
        return ", ".join(there)[: 2 * LETTERS] or "none"

    def draw(self, kept: Kept) -> Figure:
        """Average precision by class."""
        values = {name: row["AP"] for name, row in self.by_class(kept).items()}
        return draw_bars(values, "average precision")

    def draw_classes(self, kept: Kept) -> None:
        """Draw nothing: `draw` shows the classes."""


def _f1_and_recall(matrix: Array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return F1 and recall of each class, (K,): NaN where it is not there, of F1 nor predicted.

    Args:
        matrix: (K, K) samples by true and predicted class.
    """
    right, true = np.diag(matrix), matrix.sum(axis=1)
    both = true + matrix.sum(axis=0)
    f1 = np.where(both > 0, 2 * right / np.maximum(both, 1), np.nan)
    return f1, np.where(true > 0, right / np.maximum(true, 1), np.nan)


def _shares(output: Tensor) -> Tensor:
    """Return a least-squares estimate of +1 and -1 as a share in [0, 1]."""
    return ((output + 1) / 2).clamp(0, 1)


def _probabilities(task: Task, answer: Array) -> list[tuple[str, Any]]:
    """Return the columns that hold the answer for each class."""
    values = answer[:, 0, 0].tolist()
    return [(f"p {name}", value) for name, value in zip(task.classes, values, strict=True)]
