"""One class a sample, or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    confusion_matrix,
    f1_score,
    recall_score,
)
from torch import Tensor
from torch.nn.functional import cross_entropy, multilabel_soft_margin_loss

from decur.transfer.tasks.base import Array, Kept, Task, draw_bars, draw_confusion

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SingleLabel(Task):
    """One class a sample: cross-entropy; accuracy and macro F1."""

    main = "accuracy"

    def known(self, labels: Array) -> NDArray[np.bool_]:
        """Class -1 is unknown."""
        return np.asarray(labels >= 0)

    def missing_classes(self, labels: Array) -> list[str]:
        """Classes without a sample."""
        counts = np.bincount(labels, minlength=self.outputs)
        return [self.target.classes[i] for i in np.flatnonzero(counts == 0)]

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of (B, K) and (B,)."""
        return cross_entropy(output, labels)

    def regress(self, labels: Array) -> Array:
        """+1 for the class, -1 for the others: (N, K)."""
        return 2.0 * np.eye(self.outputs)[labels] - 1

    def metrics(self, kept: Kept) -> dict[str, float]:
        """`accuracy`, and `macro_F1` over the classes that are there or predicted."""
        truth, guess = kept["truth"], kept["output"].argmax(axis=1)
        return {
            "accuracy": float(accuracy_score(truth, guess)),
            "macro_F1": float(f1_score(truth, guess, average="macro", zero_division=0)),
        }

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """F1 and recall of each class, NaN without a test sample."""
        truth, guess = kept["truth"], kept["output"].argmax(axis=1)
        options = {"labels": range(self.outputs), "average": None, "zero_division": np.nan}
        f1, recall = f1_score(truth, guess, **options), recall_score(truth, guess, **options)
        return {
            name: {"F1": float(f1[i]), "recall": float(recall[i]), "n": int((truth == i).sum())}
            for i, name in enumerate(self.target.classes)
        }

    def draw(self, kept: Kept) -> Figure:
        """The confusion matrix."""
        guess = kept["output"].argmax(axis=1)
        matrix = confusion_matrix(kept["truth"], guess, labels=range(self.outputs))
        return draw_confusion(matrix, self.target.classes)


class MultiLabel(Task):
    """Any number of classes a sample: soft-margin loss (appendix B.2); mean average precision."""

    main = "mAP_macro"

    def known(self, labels: Array) -> NDArray[np.bool_]:
        """A sample with a NaN is unknown."""
        return np.asarray(~np.isnan(labels).any(axis=1))

    def missing_classes(self, labels: Array) -> list[str]:
        """Classes without a sample."""
        return [self.target.classes[i] for i in np.flatnonzero(labels.sum(axis=0) == 0)]

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Soft-margin loss of (B, K) and (B, K)."""
        return multilabel_soft_margin_loss(output, labels)

    def regress(self, labels: Array) -> Array:
        """+1 for the classes that are there, -1 for the others: (N, K)."""
        return 2.0 * labels - 1

    def metrics(self, kept: Kept) -> dict[str, float]:
        """`mAP_micro` over all decisions, `mAP_macro` over the classes that some sample shows."""
        truth, output = kept["truth"], kept["output"]
        shown = truth.any(axis=0)
        if not shown.any():
            return {"mAP_micro": np.nan, "mAP_macro": np.nan}
        return {
            "mAP_micro": float(average_precision_score(truth, output, average="micro")),
            "mAP_macro": float(
                average_precision_score(truth[:, shown], output[:, shown], average="macro")
            ),
        }

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Average precision of each class, NaN where no sample shows it."""
        truth, output = kept["truth"], kept["output"]
        return {
            name: {
                "AP": float(average_precision_score(truth[:, i], output[:, i]))
                if truth[:, i].any()
                else np.nan,
                "n": int(truth[:, i].sum()),
            }
            for i, name in enumerate(self.target.classes)
        }

    def draw(self, kept: Kept) -> Figure:
        """Average precision by class."""
        values = {name: row["AP"] for name, row in self.by_class(kept).items()}
        return draw_bars(values, "average precision")
