"""Labels of a class for each pixel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from decur.devices import send
from decur.transfer.settings import FitDefaults
from decur.transfer.tasks.base import TASKS, Array, Kept, Task, balanced, draw_confusion

if TYPE_CHECKING:
    from decur.plotting import Figure

SAVED_PIXELS = 2**25  # test masks of more pixels are not saved one by one


@TASKS.register("mask")
class Segmentation(Task):
    """A class for each pixel: cross-entropy; mean IoU and overall accuracy over all pixels."""

    measures: ClassVar = {
        "mIoU": "intersection over union averaged over classes",
        "overall_accuracy": "share of pixels that are right",
    }
    main = "mIoU"
    averages: ClassVar = {"mIoU": "IoU"}
    dense = True
    says = "class"
    fit_defaults = FitDefaults(lr=1e-4, epochs=30, schedule="constant", crop=(0.2, 1.0))
    probes = ("ridge", "sgd")  # neither is asked: a mask has heads of its own
    usual_probe = "ridge"
    measured = ("confusion",)

    def known(self, labels: Array) -> NDArray[np.bool_]:
        """Tell which samples have a known pixel, by the (N, C) pixels of each class."""
        return np.asarray(labels.sum(axis=1) > 0)

    def missing_classes(self, labels: Array) -> list[str]:
        """Return the names of classes without a pixel."""
        return [self.target.classes[i] for i in np.flatnonzero(labels.sum(axis=0) == 0)]

    weights: Tensor | None = None  # (C,) of the classes

    def weigh(self, labels: Array) -> None:
        """Weigh by the (N, C) pixels of each class, see `Task.weigh`."""
        self.weights = torch.from_numpy(balanced(labels.sum(axis=0)))

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of (B, C, H, W) and (B, H, W), over the known pixels."""
        if self.weights is not None:
            return self._weighed(output.float(), labels)
        void = self.target.void
        losses = cross_entropy(output, labels, ignore_index=void, reduction="sum")
        # a crop may hold unknown pixels only: a loss of 0, not 0 / 0
        return losses / (labels != void).sum().clamp_min(1)

    def _weighed(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over the known pixels, each weighed by its class."""
        assert self.weights is not None
        weights = send(self.weights, output.device)
        void = self.target.void
        losses = cross_entropy(output, labels, weights, ignore_index=void, reduction="sum")
        known = labels != void
        total = weights[labels.where(known, 0)].where(known, 0).sum()
        return losses / total.clamp_min(torch.finfo(total.dtype).tiny)

    def keep(self, output: Tensor, labels: Tensor, *, samples: int = 1) -> Kept:
        """Return the confusion matrix of each sample, (B, C, C) true by predicted; small masks."""
        guess = output.argmax(dim=1)  # (B, H, W)
        kept = {"confusion": confusion_of_masks(guess, labels, self.outputs).cpu().numpy()}
        if samples * guess[0].numel() <= SAVED_PIXELS:
            kind = torch.uint8 if self.target.void >= 0 else torch.int32
            kept["output"] = guess.to(kind).cpu().numpy()
            kept["truth"] = labels.to(kind).cpu().numpy()
        return kept

    def metrics(self, kept: Kept) -> dict[str, float]:
        """Return `mIoU` over the classes there are or predicted, and `overall_accuracy`."""
        matrix = kept["confusion"].sum(axis=0)  # (C, C)
        shares = ious(matrix)
        return {
            "mIoU": float(np.nanmean(shares)) if not np.isnan(shares).all() else np.nan,
            "overall_accuracy": float(np.trace(matrix) / max(1, matrix.sum())),
        }

    def trivial(self, kept: Kept) -> Kept:
        """Predict the most frequent class for every pixel."""
        pixels = kept["confusion"].sum(axis=2)  # (B, C) by true class
        answer = np.zeros_like(kept["confusion"])
        answer[:, :, pixels.sum(axis=0).argmax()] = pixels
        return {**kept, "confusion": answer}

    def guesses(self, kept: Kept) -> set[int]:
        """Return the classes that are predicted for some pixel."""
        return set(np.flatnonzero(kept["confusion"].sum(axis=(0, 1))).tolist())

    def shows(self, kept: Kept) -> NDArray[np.bool_]:
        """Tell which classes each mask shows, (N, C)."""
        return np.asarray(kept["confusion"].sum(axis=2) > 0)

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Return IoU of each class, NaN where it is neither there nor predicted; pixels."""
        matrix = kept["confusion"].sum(axis=0)
        return {
            name: {"IoU": float(iou), "n": int(pixels)}
            for name, iou, pixels in zip(
                self.target.classes, ious(matrix), matrix.sum(axis=1), strict=True
            )
        }

    def answers(self, output: Tensor, *, least_squares: bool = False) -> Tensor:
        """Return the probability of each class in each pixel."""
        return output.softmax(dim=1)

    def columns(self, answer: Array) -> list[tuple[str, Any]]:
        """Return the share of the pixels that each class has."""
        best = answer.argmax(axis=0)  # (H, W)
        shares = np.bincount(best.ravel(), minlength=len(self.classes)) / best.size
        pairs = zip(self.classes, shares.tolist(), strict=True)
        return [(f"share {name}", share) for name, share in pairs]

    def draw(self, kept: Kept) -> Figure:
        """Draw the confusion matrix over all pixels."""
        return draw_confusion(kept["confusion"].sum(axis=0), self.target.classes)


def confusion_of_masks(guess: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Return the confusion matrix of each mask, unknown pixels left out.

    Args:
        guess: (B, H, W) predicted classes.
        truth: (B, H, W) true classes; what is none of them is unknown.
        classes: C, how many there are.

    Returns:
        (B, C, C) counts, true class by predicted class.
    """
    sample = torch.arange(len(truth), device=truth.device)[:, None, None]  # (B, 1, 1)
    cell = (sample * classes + truth) * classes + guess  # (B, H, W)
    known = (truth >= 0) & (truth < classes)
    counts = torch.bincount(cell[known], minlength=len(truth) * classes**2)
    return counts.reshape(len(truth), classes, classes)


def ious(matrix: Array) -> NDArray[np.float64]:
    """Return the IoU of each class from counts of pixels by true and predicted class.

    Args:
        matrix: (..., C, C).

    Returns:
        (..., C), NaN for a class that is neither there nor predicted.
    """
    inter = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    union = matrix.sum(axis=-2) + matrix.sum(axis=-1) - inter
    return np.where(union > 0, inter / np.maximum(union, 1), np.nan)
