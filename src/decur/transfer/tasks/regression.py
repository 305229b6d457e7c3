"""Labels of one number a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from sklearn.metrics import mean_absolute_error
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from decur.plotting import plain, single
from decur.scores import score
from decur.transfer.tasks.base import TASKS, Array, Kept, Task

if TYPE_CHECKING:
    from decur.plotting import Figure


@TASKS.register("scalar")
class Regression(Task):
    """One number a sample: squared error of the standardised number; R2, mean absolute error."""

    measures: ClassVar = {
        "R2": "share of the variance that is explained",
        "MAE": "mean absolute error in the label's units",
    }
    main = "R2"
    scales: ClassVar = {"R2": "explained", "MAE": "positive"}
    probes = ("ridge",)
    usual_probe = "ridge"
    solved_as = "scalar"

    mean, std = 0.0, 1.0  # of the training part

    @property
    def outputs(self) -> int:
        """Return 1: a number is one output."""
        return 1

    def prepare(self, labels: Array) -> None:
        """Keep mean and standard deviation of the training labels."""
        self.mean, self.std = float(labels.mean()), float(labels.std()) or 1.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of (B, 1) and standardised (B,)."""
        return mse_loss(output[:, 0], (labels - self.mean) / self.std)

    def in_units(self, kept: Kept) -> Kept:
        """Return the predictions in the label's units."""
        return {**kept, "output": kept["output"] * self.std + self.mean}

    @torch.no_grad()
    def finish(self, head: nn.Module) -> None:
        """Scale the head's weights so that its output is in the label's units."""
        assert isinstance(head, nn.Linear)
        head.weight.mul_(self.std)
        head.bias.mul_(self.std).add_(self.mean)

    def keep(self, output: Tensor, labels: Tensor, *, samples: int = 1) -> Kept:
        """Return numbers in the label's units, predicted and true, (B,) each."""
        return super().keep(output[:, 0], labels, samples=samples)

    def metrics(self, kept: Kept) -> dict[str, float]:
        """Return `R2`, NaN where the numbers do not vary, and `MAE` in the label's units."""
        truth, output = kept["truth"], kept["output"]
        return {
            "R2": score(output, truth, self.known_as),
            "MAE": float(mean_absolute_error(truth, output)),
        }

    def trivial(self, kept: Kept) -> Kept:
        """Predict the mean for every sample, which is the best constant for R2."""
        mean = kept["truth"].mean(dtype=np.float64)  # as exact as R2 is, or that would not be 0
        return {**kept, "output": np.full(len(kept["truth"]), mean)}

    def floors(self, kept: Kept) -> dict[str, float]:
        """Return the R2 of the mean, and the MAE of the median, which no constant falls below."""
        truth = kept["truth"].astype(np.float64)
        return {**super().floors(kept), "MAE": float(np.abs(truth - np.median(truth)).mean())}

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """Return nothing: a number has no classes."""
        return {}

    def draw(self, kept: Kept) -> Figure:
        """Draw predicted over true."""
        figure, axis = single(width=5, height=5)
        truth, output = kept["truth"], kept["output"]
        axis.plot(truth, output, ".", alpha=0.5)
        both = [float(min(truth.min(), output.min())), float(max(truth.max(), output.max()))]
        axis.plot(both, both, color="grey", linewidth=0.8)
        name = plain(self.name)
        axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
        axis.grid(alpha=0.3)
        return figure
