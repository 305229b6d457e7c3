"""Which rasters show one place: scenes, their dates, their windows, and blocks of windows."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from decur.data.grid import Bounds, Grid, Raster, measured_cells, same_crs
from decur.errors import ConfigError

_SAME_PLACE = 0.9  # of what two rasters cover together, from which on they show one place
_CELLS = 8  # along a window, at which is looked whether it is measured
_MOST = 5_000_000  # windows of a data set
_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2})[-_]?(0[1-9]|1[0-2])[-_]?([0-3]\d)(?!\d)")

Layer = list[Raster]  # rasters of one sensor and date, which lie side by side
Cells = NDArray[np.int64]


@dataclass(frozen=True)
class Scene:
    """One place with the rasters that show it.

    Args:
        name: of the first raster's file.
        grid: whose windows are samples.
        layers: `{sensor: its dates}`, in their order; a sensor that does not see the place is left
            out.
    """

    name: str
    grid: Grid
    layers: Mapping[str, Sequence[Layer]]


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


def find_scenes(
    rasters: Mapping[str, Sequence[Raster]], *, union: bool, resolution: float | None
) -> tuple[list[Scene], list[Raster]]:
    """Return the places that rasters show.

    Args:
        rasters: `{sensor: rasters}`; the first sensor is the reference.
        union: a place is all that touching rasters of any sensor cover; else what a raster of
            the reference covers.
        resolution: of the grids, in units of their CRS; None: that of their first raster.

    Returns:
        The scenes, and the rasters of no scene.
    """
    reference, *others = rasters
    groups = _touching(rasters) if union else _places(rasters[reference])
    scenes: list[Scene] = []
    used: set[str] = set()
    for group in groups:
        first = group[0]
        own = [raster for raster in group if raster in rasters[reference]] or group
        base = own[0].grid
        bounds = [raster.grid.bounds_in(base.crs) for raster in group]
        whole = bounds[0]
        for one in bounds[1:] if union else ():
            whole = whole.union(one)
        grid = base.covering(whole)
        layers: dict[str, list[Layer]] = {}
        for name in (reference, *others):
            there = (
                [raster for raster in rasters[name] if raster in group]
                if union or name == reference
                else [r for r in rasters[name] if r.grid.bounds_in(base.crs).overlap(whole) > 0]
            )
            if there:
                layers[name] = split_dates(there, grid)
                used.update(raster.path for raster in there)
        grid = grid if resolution is None else grid.resampled(resolution)
        scenes.append(Scene(Path((own or [first])[0].path).stem, grid, layers))
    rest = [r for of_sensor in rasters.values() for r in of_sensor if r.path not in used]
    return scenes, rest


def _places(rasters: Sequence[Raster]) -> list[list[Raster]]:
    """Return rasters of one sensor by the rectangle that they cover."""
    groups: list[list[Raster]] = []
    for raster in rasters:
        for group in groups:
            if _coincide(group[0], raster):
                group.append(raster)
                break
        else:
            groups.append([raster])
    return groups


def _coincide(first: Raster, second: Raster) -> bool:
    if not same_crs(first.grid.crs, second.grid.crs):
        return False
    a, b = first.grid.bounds, second.grid.bounds
    shared = a.overlap(b)
    return shared > _SAME_PLACE * (a.area + b.area - shared)


def _touching(rasters: Mapping[str, Sequence[Raster]]) -> list[list[Raster]]:
    """Return rasters of all sensors by the connected area that they cover."""
    groups: list[list[Raster]] = []
    for raster in (raster for of_sensor in rasters.values() for raster in of_sensor):
        near = [
            group
            for group in groups
            if any(
                raster.grid.bounds_in(other.grid.crs).overlap(other.grid.bounds) > 0
                for other in group
            )
        ]
        joined = [other for group in near for other in group]
        groups = [group for group in groups if group not in near] + [[*joined, raster]]
    return groups


def split_dates(rasters: Sequence[Raster], grid: Grid) -> list[Layer]:
    """Return the rasters of one sensor by date.

    A date is told by the file's name (20230714, 2023-07-14); without one, rasters that cover the
    same rectangle are of different dates, and others lie side by side.
    """
    dates = [date_of(raster.path) for raster in rasters]
    if all(dates):
        order = sorted({date for date in dates if date})
        pairs = list(zip(dates, rasters, strict=True))
        return [[raster for date, raster in pairs if date == one] for one in order]
    layers: list[Layer] = []
    for raster in rasters:
        for layer in layers:
            if not any(_coincide(raster, other) for other in layer):
                layer.append(raster)
                break
        else:
            layers.append([raster])
    return layers


def date_of(path: str) -> str | None:
    """Return the date in a file's name as YYYYMMDD; None where it has none."""
    found = _DATE.search(Path(path).stem)
    return "".join(found.groups()) if found else None


def find_windows(scene: Scene, window: int, stride: int) -> Windows:
    """Return the windows of a scene that lie within its grid, in the order of their rows.

    Args:
        scene: any.
        window: height and width in pixels.
        stride: pixels from one to the next.

    Raises:
        ConfigError: if there are more than any training could read.
    """
    grid = scene.grid
    down = np.arange(0, grid.height - window + 1, stride)
    right = np.arange(0, grid.width - window + 1, stride)
    if len(down) * len(right) > _MOST:
        raise ConfigError(
            f"resolution: {grid.resolution[0]:g} makes {scene.name} {grid.height:,} x "
            f"{grid.width:,} pixels, {len(down) * len(right):,} windows; choose a coarser one, or "
            "a larger stride"
        )
    rows, columns = (axis.ravel() for axis in np.meshgrid(down, right, indexing="ij"))
    factor = max(1, window // _CELLS)
    coarse = grid.coarser(factor)
    measured = {}
    for name, layers in scene.layers.items():
        shares = np.zeros((len(rows), len(layers)))
        for number, layer in enumerate(layers):
            there = np.zeros((coarse.height, coarse.width), dtype=bool)
            for raster in layer:
                finer = grid.resolution[0] / raster.grid.resolution[0]
                if same_crs(grid.crs, raster.grid.crs):
                    there |= measured_cells(raster, coarse, int(factor * finer))
                else:
                    there |= measured_cells(raster, coarse, factor)
            shares[:, number] = _shares(there, rows, columns, factor, window)
        measured[name] = shares
    return Windows(rows, columns, measured)


def _shares(
    there: NDArray[np.bool_], rows: Cells, columns: Cells, factor: int, window: int
) -> NDArray[np.float64]:
    """Return the share of the cells of each window that are measured, by sums of all above."""
    sums = np.zeros((there.shape[0] + 1, there.shape[1] + 1))
    sums[1:, 1:] = there.cumsum(axis=0).cumsum(axis=1)
    top, left = rows // factor, columns // factor
    bottom = np.minimum(-(-(rows + window) // factor), there.shape[0])
    right = np.minimum(-(-(columns + window) // factor), there.shape[1])
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return np.asarray(inside / ((bottom - top) * (right - left)))


def block_names(
    scenes: Sequence[Scene], windows: Sequence[Windows], window: int, block: int
) -> list[list[str | None]]:
    """Return the spatial block of each window; None for those that reach into two.

    Blocks are squares of the map, the same for all scenes of one CRS, so that windows of different
    blocks neither overlap nor touch, even where two scenes do.

    Args:
        scenes: the places.
        windows: of each.
        window: height and width of a window in pixels.
        block: height and width of a block in windows.
    """
    corners: dict[str, Bounds] = {}
    sides: dict[str, float] = {}
    for scene in scenes:
        grid = scene.grid
        known = corners.get(grid.crs)
        corners[grid.crs] = grid.bounds if known is None else known.union(grid.bounds)
        side = window * block * max(grid.resolution)
        sides[grid.crs] = max(side, sides.get(grid.crs, 0.0))
    systems = {crs: number for number, crs in enumerate(corners)}
    names: list[list[str | None]] = []
    for scene, of_scene in zip(scenes, windows, strict=True):
        grid, corner, side = scene.grid, corners[scene.grid.crs], sides[scene.grid.crs]
        across, down = grid.resolution
        left = (grid.west + of_scene.columns * across - corner.west) / side
        top = (corner.north - grid.north + of_scene.rows * down) / side
        # what ends on a border of two blocks touches what begins there
        slack = 1e-6
        first = np.floor(np.stack([top, left]) + slack).astype(int)  # (2, N)
        ends = np.stack([top + window * down / side, left + window * across / side])
        last = np.floor(ends + slack).astype(int)
        whole = (first == last).all(axis=0)
        system = systems[grid.crs]
        names.append(
            [
                f"{system}-{y}-{x}" if inside else None
                for y, x, inside in zip(*first.tolist(), whole.tolist(), strict=True)
            ]
        )
    return names
