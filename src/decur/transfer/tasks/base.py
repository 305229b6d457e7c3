"""What every task gives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from decur.data import Target
from decur.plotting import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = NDArray[Any]
Kept = dict[str, Array]  # what is kept of test samples, one row each


class Task(ABC):
    """One label of a data set as something to learn.

    Labels come in two forms: as in a batch, and, one row a sample of the whole data set, as
    `decur.transfer.survey` collects them: the same, but for masks the pixels of each class.

    Attributes:
        main: the metric that a validation part chooses by; higher is better.
        dense: whether there is an output for each pixel.
        measured: what of `Kept` the metrics are computed from.

    Args:
        name: of the label in the data.
        target: what it is.
    """

    main: ClassVar[str]
    dense: ClassVar[bool] = False
    measured: ClassVar[tuple[str, ...]] = ("output", "truth")

    def __init__(self, name: str, target: Target) -> None:
        self.name, self.target = name, target

    @property
    def outputs(self) -> int:
        """Length of the model's output."""
        return len(self.target.classes)

    @abstractmethod
    def known(self, labels: Array) -> NDArray[np.bool_]:
        """Which samples of (N, ...) surveyed labels are labelled: (N,)."""

    def missing_classes(self, labels: Array) -> list[str]:
        """Classes that no sample of (N, ...) surveyed, known labels shows."""
        return []

    def prepare(self, labels: Array) -> None:  # noqa: B027
        """Take what the loss needs from the (N, ...) surveyed labels of the training part."""

    @abstractmethod
    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch: (B, outputs, ...) and labels as in a batch, to a scalar."""

    def finish(self, head: nn.Module) -> None:  # noqa: B027
        """Make a head that was trained by `loss` give its output in the label's units."""

    def regress(self, labels: Array) -> Array:
        """What a least-squares fit aims at: (N, ...) labels to (N, outputs)."""
        raise NotImplementedError(f"{type(self).__name__} has no pooled output to regress")

    def keep(self, output: Tensor, labels: Tensor, samples: int = 1) -> Kept:
        """What is kept of test samples, one row each.

        Args:
            output: (B, outputs, ...) of the model.
            labels: (B, ...) as in a batch.
            samples: how many the whole test part has; what would be too much is left out.
        """
        return {"output": output.float().cpu().numpy(), "truth": labels.cpu().numpy()}

    @abstractmethod
    def metrics(self, kept: Kept) -> dict[str, float]:
        """Metrics over all samples that are given; NaN where there is nothing to measure."""

    @abstractmethod
    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """`{class: {metric: value}}`; empty for scalars."""

    @abstractmethod
    def draw(self, kept: Kept) -> Figure:
        """A picture of the result; needs matplotlib."""


def new_axis(width: float, height: float) -> tuple[Figure, Any]:
    """A figure with one axis, without pyplot: no window, no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def draw_confusion(matrix: Array, classes: tuple[str, ...]) -> Figure:
    """A confusion matrix, each row (true class) as shares of it.

    Args:
        matrix: (C, C) counts, true class by predicted class.
        classes: their names.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(12.0, 2.5 + 0.5 * len(classes))
    figure, axis = new_axis(side + 0.8, side)
    picture = axis.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(classes))
    names = [plain(name) for name in classes]
    axis.set_xticks(ticks, names, rotation=45, ha="right")
    axis.set_yticks(ticks, names)
    axis.set(xlabel="predicted", ylabel="true")
    if len(classes) <= 20:
        for row in ticks:
            for column in ticks:
                share = shares[row, column]
                colour = "white" if share > 0.5 else "black"
                axis.text(
                    column, row, f"{share:.2f}", ha="center", va="center", color=colour, fontsize=7
                )
    figure.colorbar(picture, ax=axis, label="share of the true class")
    return figure


def draw_bars(values: dict[str, float], label: str) -> Figure:
    """A bar for each class, NaN left empty."""
    figure, axis = new_axis(7, max(2.0, 0.6 + 0.3 * len(values)))
    names = list(values)[::-1]
    shown = [plain(name) for name in names]
    axis.barh(shown, np.nan_to_num([values[name] for name in names]))
    axis.set(xlim=(0, 1), xlabel=label)
    axis.grid(axis="x", alpha=0.3)
    return figure
