"""Windows of scenes: which are measured, and which lie in which spatial block."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from decur.data.grid import Bounds, Grid, unit_of
from decur.data.map_rasters import measured_cells
from decur.data.scene_layout import Layer, Nearby, Scene
from decur.errors import ConfigError, DataError

log = logging.getLogger(__name__)

_CELLS = 8  # along a window, at which is looked whether it is measured
_MOST = 5_000_000  # windows of a data set
_BLOCK = 8  # windows along the side of a block, where that leaves enough of them
_BLOCKS = (10, 5)  # that labelled data should have, for its folds; that it needs for five folds
_ROUNDING = 1e-9  # degrees

Cells = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Windows:
    """The windows of a scene.

    Args:
        rows: (N,) their first rows in the grid.
        columns: (N,) their first columns.
        measured: `{sensor: (N, dates) share of the window that is measured}`.
    """

    rows: Cells
    columns: Cells
    measured: Mapping[str, NDArray[np.float64]]

    def seen(self, name: str, min_valid: float) -> Mask:
        """Return which windows a sensor has measured enough of at a date: (N, dates)."""
        if name not in self.measured:
            return np.zeros((len(self.rows), 1), dtype=bool)
        return np.asarray(self.measured[name] >= max(min_valid, 1e-9))


def find_windows(
    scenes: Sequence[Scene],
    window: int,
    stride: int,
    nodata: Mapping[str, tuple[float, ...]],
) -> list[Windows]:
    """Return the windows of each scene that lie within its grid, in the order of their rows.

    Args:
        scenes: any.
        window: height and width in pixels.
        stride: pixels from one to the next.
        nodata: raw values of a sensor that mean "no measurement", besides those of the files.

    Raises:
        ConfigError: if there are more than any training could read.
    """
    total = 0
    for scene in scenes:
        grid = scene.grid
        down, right = (max(0, (n - window) // stride + 1) for n in (grid.height, grid.width))
        total += down * right
        if total > _MOST:
            raise ConfigError(
                f"resolution: {grid.resolution[0]:g} makes {scene.name} {grid.height:,} x "
                f"{grid.width:,} pixels, {down * right:,} windows, more than {_MOST:,}; choose a "
                "coarser one, or a larger stride"
            )
    return [_windows(scene, window, stride, nodata) for scene in scenes]


def _windows(
    scene: Scene, window: int, stride: int, nodata: Mapping[str, tuple[float, ...]]
) -> Windows:
    grid = scene.grid
    down = np.arange(0, grid.height - window + 1, stride)
    right = np.arange(0, grid.width - window + 1, stride)
    rows, columns = (axis.ravel() for axis in np.meshgrid(down, right, indexing="ij"))
    if not len(rows):
        return Windows(rows, columns, {})
    factor = max(1, window // _CELLS)
    coarse = grid.coarser(factor)
    measured = {}
    for name, layers in scene.layers.items():
        shares = [
            _shares(_measured(layer, coarse, nodata.get(name, ())), rows, columns, factor, window)
            for layer in layers
        ]
        measured[name] = np.stack(shares, axis=1)  # (N, dates)
    return Windows(rows, columns, measured)


def _measured(layer: Layer, coarse: Grid, nodata: tuple[float, ...]) -> Mask:
    """Return which cells any raster of a layer has measured: (height, width)."""
    there = np.zeros((coarse.height, coarse.width), dtype=bool)
    for raster in layer:
        part = coarse.covering(raster.grid.bounds_on(coarse))
        top, left = coarse.offset(part) or (0, 0)
        bottom, right = min(top + part.height, coarse.height), min(left + part.width, coarse.width)
        top, left = max(top, 0), max(left, 0)
        if top < bottom and left < right:
            cells = coarse.window(top, left, bottom - top, right - left)
            there[top:bottom, left:right] |= measured_cells(raster, cells, nodata)
    return there


def _shares(
    there: Mask, rows: Cells, columns: Cells, factor: int, window: int
) -> NDArray[np.float64]:
    """Return the share of the cells of each window that are measured, by sums of all above."""
    sums = np.zeros((there.shape[0] + 1, there.shape[1] + 1))
    sums[1:, 1:] = there.cumsum(axis=0).cumsum(axis=1)
    top, left = rows // factor, columns // factor
    bottom = np.minimum(-(-(rows + window) // factor), there.shape[0])
    right = np.minimum(-(-(columns + window) // factor), there.shape[1])
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(inside / ((bottom - top) * (right - left)))


def usable_windows(
    windows: Windows, names: Sequence[str], *, union: bool, min_valid: float
) -> Mask:
    """Return which windows are samples, (N,): those that all sensors see, or that one does."""
    seen = [windows.seen(name, min_valid).any(axis=1) for name in names]
    joined = np.logical_or if union else np.logical_and
    return np.asarray(joined.reduce(seen))


def refuse_no_window(
    scenes: Sequence[Scene], windows: Sequence[Windows], window: int, min_valid: float
) -> DataError:
    """Return the error that there is no sample, with what would make one."""
    if not any(len(of_scene.rows) for of_scene in windows):
        largest = max((scene.grid for scene in scenes), key=lambda g: min(g.height, g.width))
        return DataError(
            f"window: {window} px fit into none of {len(scenes)} scenes; the largest is "
            f"{largest.height} x {largest.width}; set --data.window lower, or a finer resolution"
        )
    return DataError(
        f"no window is measured to {100 * min_valid:g} % by all sensors; set --data.min_valid "
        "lower, or --data.extent union"
    )


def spatial_blocks(
    scenes: Sequence[Scene],
    windows: Sequence[Windows],
    counted: Sequence[Mask],
    window: int,
    block: int | None,
) -> list[list[str | None]]:
    """Return the spatial block of each window; None for a window that reaches into two.

    Blocks are squares of the map, the same for all scenes of one CRS, so that windows of different
    blocks neither overlap nor touch, even where two scenes do, whichever way longitudes are
    counted. What two CRSs show (neighbouring zones of UTM) has blocks in the first alone.

    Args:
        scenes: the places.
        windows: of each.
        counted: which of them are samples (with labels, where there are some).
        window: height and width of a window in pixels.
        block: windows along the side of a block; None: 8, or fewer where that leaves less than 10
            blocks; a single one only where there would be less than 5.

    Raises:
        DataError: if no window lies within a block.
    """
    least, needed = _BLOCKS
    tries = [(side, least) for side in range(_BLOCK, 1, -1)]
    tries += [(side, needed) for side in range(_BLOCK, 0, -1)]
    alone = _alone(scenes, windows, window)
    for side, enough in tries if block is None else [(block, 0)]:
        names = _block_names(scenes, windows, window, side + 1)
        names = [
            [name if free else None for name, free in zip(of_scene, of_windows, strict=True)]
            for of_scene, of_windows in zip(names, alone, strict=True)
        ]
        found = [
            [of_scene[at] for at in np.flatnonzero(wanted)]
            for wanted, of_scene in zip(counted, names, strict=True)
        ]
        used = {name for of_scene in found for name in of_scene if name is not None}
        if len(used) >= enough:
            break
    if not used:
        raise DataError(f"block: no window lies within a block of {side}; set --data.block lower")
    log.info(
        "%d spatial blocks of up to %d x %d windows; windows of two blocks do not touch, since %d "
        "windows between blocks belong to none",
        len(used),
        side,
        side,
        sum(name is None for of_scene in found for name in of_scene),
    )
    return names


def _alone(scenes: Sequence[Scene], windows: Sequence[Windows], window: int) -> list[Mask]:
    """Return which windows of each scene meet no scene of an earlier CRS."""
    order = {crs: number for number, crs in enumerate(dict.fromkeys(s.grid.crs for s in scenes))}
    nearby = Nearby([scene.grid for scene in scenes]) if len(order) > 1 else None
    alone = []
    for scene, of_scene in zip(scenes, windows, strict=True):
        grid, free = scene.grid, np.ones(len(of_scene.rows), dtype=bool)
        west = grid.west + of_scene.columns * grid.resolution[0]
        north = grid.north - of_scene.rows * grid.resolution[1]
        east, south = west + window * grid.resolution[0], north - window * grid.resolution[1]
        for other in nearby.overlapping(grid) if nearby else ():
            if order[scenes[other].grid.crs] < order[grid.crs]:
                box = scenes[other].grid.bounds_on(grid)
                across = (west <= box.east) & (east >= box.west)
                free &= ~(across & (south <= box.north) & (north >= box.south))
        alone.append(free)
    return alone


def _block_names(
    scenes: Sequence[Scene], windows: Sequence[Windows], window: int, block: int
) -> list[list[str | None]]:
    """Return the block of each window, of squares that are `block` windows wide."""
    grids = _counted_alike([scene.grid for scene in scenes])
    corners: dict[str, Bounds] = {}
    sides: dict[str, float] = {}
    for grid in grids:
        known, own = corners.get(grid.crs), grid.bounds
        corners[grid.crs] = own if known is None else known.union(own)
        side = window * block * max(grid.resolution)
        sides[grid.crs] = max(side, sides.get(grid.crs, 0.0))
    systems = {crs: number for number, crs in enumerate(corners)}
    names: list[list[str | None]] = []
    for grid, of_scene in zip(grids, windows, strict=True):
        corner, side = corners[grid.crs], sides[grid.crs]
        across, down = grid.resolution
        left = (grid.west + of_scene.columns * across - corner.west) / side
        top = (corner.north - grid.north + of_scene.rows * down) / side
        # what ends on a border of two blocks touches what begins there
        slack = 1e-6
        first = np.floor(np.stack([top, left]) + slack).astype(int)  # (2, N)
        ends = np.stack([top + window * down / side, left + window * across / side])
        last = np.floor(ends + slack).astype(int)
        whole = (first == last).all(axis=0)
        if unit_of(grid.crs) == "degrees":  # what ends a turn on touches what begins at the corner
            whole &= ends[1] + slack < 360 / side
        system = systems[grid.crs]
        names.append(
            [
                f"{system}-{y}-{x}" if inside else None
                for y, x, inside in zip(*first.tolist(), whole.tolist(), strict=True)
            ]
        )
    return names


def _counted_alike(grids: Sequence[Grid]) -> list[Grid]:
    """Return grids in degrees with longitudes counted from one meridian, others as they are.

    The meridian lies before the first scene behind the widest gap between scenes, so that none
    reaches over it unless scenes lie all around the Earth.
    """
    spans: dict[str, list[tuple[float, float]]] = {}
    for grid in grids:
        if unit_of(grid.crs) == "degrees":
            west = grid.usual_west
            spans.setdefault(grid.crs, []).append((west, west + grid.bounds.east - grid.west))
    begins = {crs: _behind_gap(sorted(of_crs)) - _ROUNDING for crs, of_crs in spans.items()}
    return [
        replace(grid, west=begins[grid.crs] + (grid.west - begins[grid.crs]) % 360)
        if grid.crs in begins
        else grid
        for grid in grids
    ]


def _behind_gap(spans: Sequence[tuple[float, float]]) -> float:
    """Return the west of what follows the widest gap between spans of longitudes, by their west."""
    reach = max(east for _, east in spans) - 360
    widest, found = -np.inf, spans[0][0]
    for west, east in spans:
        gap = round(west - reach, 6)  # gaps that only differ by rounding are alike
        if gap > widest:
            widest, found = gap, west
        reach = max(reach, east)
    return found
