"""Where labels lie over windows, and over each other: how much of a ground has two classes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from decur.data.grid import Grid
from decur.data.map_rasters import Raster
from decur.data.scene_layout import Nearby
from decur.data.selection import evenly_spaced, spaced
from decur.data.vectors import Geometry
from decur.data.window_reader import WindowReader
from decur.errors import listed

log = logging.getLogger(__name__)

_PAIRS = 32  # pairs of rasters that are compared
_SIDE, _ALONG = 256, 3  # pixels of a square that is compared, and squares along an overlap
_STEPS = 16  # steps along a window's side that tell shapes from the boxes around them
_CELLS = 2048  # along the longer side of a scene, at which shapes are compared
_TOLD = 1e-3  # share of two classes from which on it is told: borders of neighbours may differ

Boxes = NDArray[np.float64]  # (N, 4), as `Bounds`


def warn_rasters_apart(rasters: Sequence[Raster], decode: Callable[[Tensor], Tensor]) -> None:
    """Say how many pixels of label rasters that overlap have two classes.

    Up to 32 pairs are compared, in up to nine squares of each.

    Args:
        rasters: of labels, in the order in which they are taken.
        decode: from raw values (H, W) to classes, -1 where there is none.
    """
    nearby = Nearby([raster.grid for raster in rasters])
    pairs = [
        (row, other)
        for row, raster in enumerate(rasters)
        for other in nearby.overlapping(raster.grid)
        if other > row
    ]
    compared = apart = 0
    worst, most = (0, 0), 0
    for at in evenly_spaced(len(pairs), _PAIRS).tolist():
        first, second = (rasters[row] for row in pairs[at])
        both, differ = _compare(first, second, decode)
        compared, apart = compared + both, apart + differ
        if differ > most:
            worst, most = pairs[at], differ
    if apart > _TOLD * compared:
        first, second = (rasters[row].path for row in worst)
        log.warning(
            "label rasters overlap in %d places, and of the pixels looked at there %.3g %% "
            "have two classes, such as in %s and %s; the first by name is taken: take one out, or "
            "give what is wrong its nodata",
            len(pairs),
            100 * apart / compared,
            first,
            second,
        )


def _compare(first: Raster, second: Raster, decode: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Return how many pixels of squares have a class in both rasters, and how many two of them."""
    grid = first.grid
    shared = grid.covering(second.grid.bounds_on(grid))
    top, left = grid.offset(shared) or (0, 0)
    bottom, right = min(top + shared.height, grid.height), min(left + shared.width, grid.width)
    top, left = max(top, 0), max(left, 0)
    height, width = min(_SIDE, bottom - top), min(_SIDE, right - left)
    if height <= 0 or width <= 0:
        return 0, 0
    readers = [WindowReader(grid, [raster], nearest=True) for raster in (first, second)]
    both = differ = 0
    for row in spaced(range(top, bottom - height + 1), _ALONG):
        for column in spaced(range(left, right - width + 1), _ALONG):
            a, b = (decode(reader.read(row, column, height, width)[0]) for reader in readers)
            known = (a >= 0) & (b >= 0)
            both += int(known.sum())
            differ += int((known & (a != b)).sum())
    return both, differ


class ShapesOver:
    """How much of what shapes cover has two classes, summed over scenes.

    Args:
        path: of the shapes, for the message.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.covered, self.doubtful = path, 0, 0
        self.shown: set[int] = set()  # classes of cells
        self.finely = True  # whether all cells were pixels

    def count(self, shapes: Sequence[Geometry], classes: Sequence[int], grid: Grid) -> None:
        """Count the cells of a scene that shapes cover, and those of two classes.

        Where the first shape of a cell is of another class than the last, it has two.

        Args:
            shapes: near the scene, in its CRS.
            classes: of the shapes.
            grid: of the scene.
        """
        if not shapes:
            return
        factor = max(1, -(-max(grid.height, grid.width) // _CELLS))
        self.finely &= factor == 1
        cells = grid.coarser(factor)
        last = _burnt(shapes, classes, cells)
        self.shown.update(np.unique(last).tolist())
        if len(set(classes)) < 2:
            return
        first = _burnt(shapes[::-1], classes[::-1], cells)
        self.covered += int((last >= 0).sum())
        self.doubtful += int((last != first).sum())

    def warn(self, classes: Mapping[int, str]) -> None:
        """Say how much of what is covered has two classes, and which classes are nowhere.

        Args:
            classes: names of the classes of shapes by their numbers.
        """
        nowhere = [name for number, name in sorted(classes.items()) if number not in self.shown]
        if nowhere and self.finely:
            log.warning(
                "%s: no pixel of the scenes is of the class %s, whose shapes lie elsewhere, under "
                "others, or between the centres of pixels; a finer --data.resolution shows small "
                "ones",
                self.path,
                listed(nowhere),
            )
        if self.doubtful > _TOLD * self.covered:
            log.warning(
                "%s: shapes of different classes lie over each other on %.3g %% of the pixels that "
                "shapes cover; the later one in the file is taken there: cut them apart, or sort "
                "them",
                self.path,
                100 * self.doubtful / self.covered,
            )


def _burnt(shapes: Sequence[Geometry], classes: Sequence[int], grid: Grid) -> NDArray[np.int32]:
    """Return the class of the last shape over the centre of each cell, -1 without one: (H, W)."""
    from rasterio.features import rasterize

    burnt: NDArray[np.int32] = rasterize(
        zip(shapes, classes, strict=True),
        out_shape=(grid.height, grid.width),
        fill=-1,
        transform=grid.affine,
        dtype="int32",
    )
    return burnt


def boxes_touched(shapes: Sequence[Geometry], grid: Grid, boxes: Boxes) -> NDArray[np.bool_]:
    """Return which boxes, all of one size, hold a cell that a shape touches: (N,).

    Cells are a sixteenth of a box.
    """
    from rasterio.features import rasterize

    side = round((boxes[0, 2] - boxes[0, 0]) / grid.resolution[0])  # pixels
    cells = grid.coarser(max(1, side // _STEPS))
    burnt = rasterize(
        shapes,
        out_shape=(cells.height, cells.width),
        transform=cells.affine,
        all_touched=True,
        dtype="uint8",
    )
    # how many are burnt above and to the left of each corner of cells: (height + 1, width + 1)
    before = np.pad(burnt.cumsum(0, np.int64).cumsum(1), ((1, 0), (1, 0)))
    west, south, east, north = boxes.T
    across, down = cells.resolution
    left, right = _between((west - cells.west) / across, (east - cells.west) / across, cells.width)
    top, bottom = _between((cells.north - north) / down, (cells.north - south) / down, cells.height)
    count = before[bottom, right] - before[top, right] - before[bottom, left] + before[top, left]
    return np.asarray(count > 0)


def _between(first: NDArray[Any], last: NDArray[Any], count: int) -> NDArray[np.int64]:
    """Return the cells that intervals reach into, the first and the one behind the last: (2, N)."""
    edges = np.stack([np.floor(first.round(6)), np.ceil(last.round(6))])
    return edges.clip(0, count).astype(np.int64)


def boxes_meeting(first: Boxes, second: Boxes) -> NDArray[np.bool_]:
    """Return which of the second boxes meet any of the first: (N,).

    The box of a point or of a straight line has no area, and meets others all the same.
    """
    met = np.zeros(len(second), dtype=bool)
    few, many = (first, second) if len(first) <= len(second) else (second, first)
    for number, (west, south, east, north) in enumerate(few):
        across = (many[:, 0] <= east) & (many[:, 2] >= west)
        along = (many[:, 1] <= north) & (many[:, 3] >= south)
        if many is second:
            met |= across & along
        else:
            met[number] = (across & along).any()
    return met
