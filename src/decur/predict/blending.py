"""The windows of a tile, blended."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.predict.windows import Corner, Plan, Tile


class Blend:
    """Weighted sums of what is predicted for the windows of a tile.

    Args:
        plan: of the windows and their weights.
        tile: the rectangle.
        bands: channels of a prediction.
        device: where sums are kept.
    """

    def __init__(self, plan: Plan, tile: Tile, bands: int, device: str) -> None:
        self.plan, self.tile = plan, tile
        self.sums = torch.zeros(bands, tile.height, tile.width, device=device)
        self.weights = torch.zeros(tile.height, tile.width, device=device)
        self.seen = torch.zeros(tile.height, tile.width, dtype=torch.bool)

    def add(self, corner: Corner, output: Tensor, seen: Tensor) -> None:
        """Add a window.

        Args:
            corner: of the window.
            output: (bands, h, w), or (bands, 1, 1) where the whole window has one answer.
            seen: (h, w) bool: which of its cells were measured.
        """
        rows, columns = (
            (max(first - start, 0), min(first + length - start, side))
            for first, start, length, side in zip(
                (self.tile.row, self.tile.column),
                corner,
                (self.tile.height, self.tile.width),
                (self.plan.rows.window, self.plan.columns.window),
                strict=True,
            )
        )
        inside = (slice(*rows), slice(*columns))
        top, left = corner[0] - self.tile.row, corner[1] - self.tile.column
        at = (slice(top + rows[0], top + rows[1]), slice(left + columns[0], left + columns[1]))
        weights = torch.from_numpy(self.plan.weights(corner)[inside]).to(self.sums.device)
        part = output if output.shape[-1] == 1 else output[(..., *inside)]
        self.sums[(..., *at)] += part * weights
        self.weights[at] += weights
        self.seen[at] |= seen[inside]

    def mean(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the weighted means (bands, H, W), and the cells that were measured (H, W)."""
        known = self.seen & (self.weights > 0).cpu()
        mean = self.sums.div_(self.weights.clamp_min(1e-12))
        return mean.cpu().numpy(), known.numpy()
