"""One number a sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import mean_absolute_error, r2_score
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from decur.plotting import plain
from decur.transfer.tasks.base import Array, Kept, Task, new_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Regression(Task):
    """One number a sample: squared error of the standardised number; R2, mean absolute error."""

    main = "R2"

    mean, std = 0.0, 1.0  # of the training part

    @property
    def outputs(self) -> int:
        """One."""
        return 1

    def known(self, labels: Array) -> NDArray[np.bool_]:
        """NaN is unknown."""
        return np.asarray(~np.isnan(labels))

    def prepare(self, labels: Array) -> None:
        """Mean and standard deviation of the training labels."""
        self.mean, self.std = float(labels.mean()), float(labels.std()) or 1.0

    def loss(self, output: Tensor, labels: Tensor) -> Tensor:
        """Mean squared error of (B, 1) and standardised (B,)."""
        return mse_loss(output[:, 0], (labels - self.mean) / self.std)

    @torch.no_grad()
    def finish(self, head: nn.Module) -> None:
        """From standardised numbers to the label's units."""
        assert isinstance(head, nn.Linear)
        head.weight.mul_(self.std)
        head.bias.mul_(self.std).add_(self.mean)

    def regress(self, labels: Array) -> Array:
        """The numbers, whose scale least squares does not mind: (N, 1)."""
        return labels[:, None].astype(np.float64)

    def keep(self, output: Tensor, labels: Tensor, samples: int = 1) -> Kept:
        """Numbers in the label's units, predicted and true, (B,) each."""
        return super().keep(output[:, 0], labels, samples)

    def metrics(self, kept: Kept) -> dict[str, float]:
        """`R2`, and `MAE` in the label's units."""
        truth, output = kept["truth"], kept["output"]
        return {
            "R2": float(r2_score(truth, output)) if len(truth) > 1 else np.nan,
            "MAE": float(mean_absolute_error(truth, output)),
        }

    def by_class(self, kept: Kept) -> dict[str, dict[str, float]]:
        """A number has no classes."""
        return {}

    def draw(self, kept: Kept) -> Figure:
        """Predicted over true."""
        figure, axis = new_axis(5, 5)
        truth, output = kept["truth"], kept["output"]
        axis.plot(truth, output, ".", alpha=0.5)
        both = [float(min(truth.min(), output.min())), float(max(truth.max(), output.max()))]
        axis.plot(both, both, color="grey", linewidth=0.8)
        name = plain(self.name)
        axis.set(xlabel=f"true {name}", ylabel=f"predicted {name}")
        axis.grid(alpha=0.3)
        return figure
