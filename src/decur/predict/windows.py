"""Where windows lie on a grid, how they are blended, and in which tiles a map is made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decur.devices import send

_MARGIN = 0.25  # share of an overlap next to a window's edge that is left to its neighbour


@dataclass(frozen=True)
class Axis:
    """The windows along one side of a scene, in cells: pixels, or steps of a feature map.

    A window's weight rises along the overlap with its neighbour as a cosine does. The outermost
    cells, which the network sees with half their surroundings, have no weight unless they lie at
    the scene's own edge. The first and the last window are moved inwards to lie within the scene.

    Args:
        length: cells of the scene.
        window: cells of a window; of one that is longer than the scene the rest lies beyond it.
        step: cells from one window to the next, at most `window`.
        origin: cells from a fixed place on the map to the scene: windows start at whole steps from
            that place, so that two scenes which overlap are seen in the same windows.
    """

    length: int
    window: int
    step: int
    origin: int = 0

    @cached_property
    def starts(self) -> list[int]:
        """Return the first cell of each window."""
        room = self.length - self.window
        if room <= 0:
            return [0]
        first = -self.origin % self.step or self.step
        return [0, *range(first, room, self.step), room]

    def shifted(self, cells: int) -> Axis:
        """Return the windows that start some cells further on."""
        return replace(self, origin=self.origin - cells) if cells else self

    def weights(self, start: int) -> NDArray[np.float32]:
        """Return the weight of each cell of a window: (window,)."""
        overlap = self.window - self.step
        margin = int(overlap * _MARGIN)
        ramp = min(overlap - 2 * margin, self.window // 2 - margin)
        at = np.arange(self.window) + 0.5
        before = at - margin if start > 0 else np.full(self.window, np.inf)
        after = self.window - margin - at
        if start + self.window >= self.length:
            after = np.full(self.window, np.inf)
        rise = np.clip(np.stack([before, after]) / max(ramp, 1e-9), 0, 1)
        return np.asarray((0.5 - 0.5 * np.cos(np.pi * rise)).prod(axis=0), dtype=np.float32)

    def touching(self, first: int, last: int) -> list[int]:
        """Return the starts of the windows that have a weight in cells `first` to `last` - 1."""
        found = []
        for start in self.starts:
            low, high = max(first - start, 0), min(last - start, self.window)
            if low < high and self.weights(start)[low:high].any():
                found.append(start)
        return found


@dataclass(frozen=True)
class Tile:
    """A rectangle of a map, made at once.

    Args:
        number: of the tile.
        row: first row in the scene's grid.
        column: first column.
        height: rows.
        width: columns.
    """

    number: int
    row: int
    column: int
    height: int
    width: int


@dataclass(frozen=True)
class Area:
    """A rectangle of the scene's grid that is mapped.

    Args:
        row: its first row.
        column: its first column.
        height: its rows.
        width: its columns.
    """

    row: int
    column: int
    height: int
    width: int

    def tiles(self, side: int) -> list[Tile]:
        """Return the tiles of at most `side` x `side` cells that fill the rectangle."""
        corners = [
            (row, column)
            for row in range(0, self.height, side)
            for column in range(0, self.width, side)
        ]
        return [
            Tile(
                number,
                self.row + row,
                self.column + column,
                min(side, self.height - row),
                min(side, self.width - column),
            )
            for number, (row, column) in enumerate(corners)
        ]

    def part(self, which: int, of: int, unit: int) -> Area | None:
        """Return one of several parts of about equal height, whole units of rows each.

        Args:
            which: from 1.
            of: how many.
            unit: rows that stay together.

        Returns:
            The part; None where there are more parts than units.
        """
        units = -(-self.height // unit)
        if of > units:
            return None
        first, last = (which - 1) * units // of * unit, which * units // of * unit
        return Area(self.row + first, self.column, min(last, self.height) - first, self.width)


Corner = tuple[int, int]  # first row and column of a window, in cells


@dataclass(frozen=True)
class Plan:
    """The windows of all tiles, in the batches in which they are read and predicted.

    Windows that reach over the edge of a tile are predicted for either, so that a tile depends on
    no other.

    Args:
        rows: the windows along the scene's height.
        columns: the windows along its width.
        batch: windows in a batch, which never hold those of two tiles.
        shifts: rows and columns by which each grid of windows is shifted; what the grids say is
            averaged.
    """

    rows: Axis
    columns: Axis
    batch: int
    shifts: tuple[tuple[int, int], ...] = ((0, 0),)

    def corners(self, tile: Tile) -> list[Corner]:
        """Return the windows that a tile is made of, in the order of their rows."""
        found: set[Corner] = set()  # at the edges of a scene grids share windows
        for down, right in self.shifts:
            rows = self.rows.shifted(down).touching(tile.row, tile.row + tile.height)
            columns = self.columns.shifted(right).touching(tile.column, tile.column + tile.width)
            found.update((row, column) for row in rows for column in columns)
        return sorted(found)

    def batches(self, tile: Tile) -> Iterator[list[Corner]]:
        """Yield the windows of a tile in batches."""
        corners = self.corners(tile)
        for first in range(0, len(corners), self.batch):
            yield corners[first : first + self.batch]

    def weights(self, corner: Corner) -> NDArray[np.float32]:
        """Return the weights of a window's cells: (window, window)."""
        return np.outer(self.rows.weights(corner[0]), self.columns.weights(corner[1]))


class Batches:
    """The batches of some tiles, one after the other, as a loader's `batch_sampler`.

    Args:
        plan: of the windows.
        tiles: whose windows are read.
    """

    def __init__(self, plan: Plan, tiles: Sequence[Tile]) -> None:
        self.plan, self.tiles = plan, tiles

    def __iter__(self) -> Iterator[list[Corner]]:
        for tile in self.tiles:
            yield from self.plan.batches(tile)


# -- the windows of a tile, blended ----------------------------------------------------------------


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
        weights = torch.from_numpy(self.plan.weights(corner)[inside]).contiguous()
        weights = send(weights, self.sums.device)  # (h, w), without waiting for the windows before
        part = output if output.shape[-1] == 1 else output[(..., *inside)]
        self.sums[(..., *at)] += part * weights
        self.weights[at] += weights
        self.seen[at] |= seen[inside]

    def mean(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return the weighted means (bands, H, W), and the cells that were measured (H, W)."""
        known = self.seen & (self.weights > 0).cpu()
        mean = self.sums.div_(self.weights.clamp_min(1e-12))
        return mean.cpu().numpy(), known.numpy()
