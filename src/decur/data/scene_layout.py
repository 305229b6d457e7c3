"""Which rasters show one place: scenes, and the dates of their sensors."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from decur.data.grid import LONGITUDE_LATITUDE, Bounds, Grid, same_crs, unit_of
from decur.data.map_rasters import Raster

_SAME_PLACE = 0.9  # share that two rasters cover together, from which on they show one place
_DATE = re.compile(r"(?<!\d)((?:19|20)\d{2})[-_]?(0[1-9]|1[0-2])[-_]?([0-3]\d)(?!\d)")
_MARGIN = 1e-6  # degrees, by which boxes may be wrong
_POLAR = 60.0  # degrees north or south, from where on a box around all longitudes holds the pole

Layer = list[Raster]  # rasters of one sensor and date, which lie side by side


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


def find_scenes(
    rasters: Mapping[str, Sequence[Raster]], *, union: bool, resolution: float | None
) -> tuple[list[Scene], list[Raster]]:
    """Return the places that rasters show.

    Args:
        rasters: `{sensor: rasters}`; the first sensor is the reference.
        union: a place is all that overlapping rasters of any sensor cover; else what a raster of
            the reference covers.
        resolution: of the grids, in units of their CRS; None: that of their first raster.

    Returns:
        The scenes, and the rasters of no scene.
    """
    places = _unions(rasters) if union else _under_reference(rasters)
    scenes: list[Scene] = []
    used: set[str] = set()
    for place in places:
        first, *rest = next(iter(place.values()))
        grid = first.grid
        if union:
            whole = grid.bounds
            for raster in [*rest, *(r for of_sensor in place.values() for r in of_sensor)]:
                whole = whole.union(raster.grid.bounds_on(grid))
            grid = grid.covering(whole)
        layers = {name: split_dates(of_sensor) for name, of_sensor in place.items()}
        used.update(raster.path for of_sensor in place.values() for raster in of_sensor)
        grid = grid if resolution is None else grid.resampled(resolution)
        scenes.append(Scene(Path(first.path).stem, grid, layers))
    rest = [r for of_sensor in rasters.values() for r in of_sensor if r.path not in used]
    return scenes, rest


def _under_reference(rasters: Mapping[str, Sequence[Raster]]) -> list[dict[str, list[Raster]]]:
    """Return for each place of the reference the rasters of all sensors that overlap it."""
    reference, *others = rasters
    nearby = {name: Nearby([raster.grid for raster in rasters[name]]) for name in others}
    places = []
    for group in _places(rasters[reference]):
        place = {reference: group}
        for name, index in nearby.items():
            if there := [rasters[name][i] for i in index.overlapping(group[0].grid)]:
                place[name] = there
        places.append(place)
    return places


def _unions(rasters: Mapping[str, Sequence[Raster]]) -> list[dict[str, list[Raster]]]:
    """Return rasters of all sensors by the connected area that they cover."""
    sensors = [name for name, of_sensor in rasters.items() for _ in of_sensor]
    every = [raster for of_sensor in rasters.values() for raster in of_sensor]
    index = Nearby([raster.grid for raster in every])
    area = list(range(len(sensors)))  # of each raster: an earlier one of its area, or itself

    def first_of(row: int) -> int:
        while area[row] != row:
            area[row] = row = area[area[row]]
        return row

    for row, raster in enumerate(every):
        for other in index.overlapping(raster.grid):
            low, high = sorted((first_of(row), first_of(other)))
            area[high] = low
    places: dict[int, dict[str, list[Raster]]] = {}
    for row, name in enumerate(sensors):  # in the order of the sensors
        place = places.setdefault(first_of(row), {})
        place.setdefault(name, []).append(every[row])
    return list(places.values())


class Nearby:
    """Rectangles that are found by where they lie, without a comparison of each with each.

    Boxes in longitude and latitude tell which may overlap; only those are compared on the
    map, since moving a rectangle to another CRS takes a millisecond.
    """

    def __init__(self, grids: Sequence[Grid]) -> None:
        self.grids = list(grids)
        self.boxes = np.array(list(map(degrees_box, self.grids))).reshape(-1, 4)  # (N, 4)

    def overlapping(self, grid: Grid) -> list[int]:
        """Return the numbers of those that overlap a grid, in their order."""
        west, south, east, north = degrees_box(grid)
        across = (self.boxes[:, 0] <= east) & (self.boxes[:, 2] >= west)
        along = (self.boxes[:, 1] <= north) & (self.boxes[:, 3] >= south)
        return [
            row
            for row in np.flatnonzero(across & along).tolist()
            if self.grids[row].bounds_on(grid).overlap(grid.bounds) > 0
        ]


def degrees_box(grid: Grid) -> Bounds:
    """Return longitudes and latitudes that a grid lies within."""
    west, south, east, north = grid.bounds_in(LONGITUDE_LATITUDE)
    if unit_of(grid.crs) == "degrees":
        west, east = grid.usual_west, grid.usual_west + east - west
    if west > east or east > 180.0:  # across 180 degrees
        west, east = -180.0, 180.0
    if east - west > 180.0:
        south = -90.0 if south < -_POLAR else south
        north = 90.0 if north > _POLAR else north
    return Bounds(west - _MARGIN, south - _MARGIN, east + _MARGIN, north + _MARGIN)


def _places(rasters: Sequence[Raster]) -> list[list[Raster]]:
    """Return rasters of one sensor by the rectangle that they cover."""
    index = Nearby([raster.grid for raster in rasters])
    groups: dict[int, list[Raster]] = {}
    for row, raster in enumerate(rasters):
        near = (other for other in index.overlapping(raster.grid) if other in groups)
        first = next((o for o in near if _coincide(rasters[o], raster)), row)
        groups.setdefault(first, []).append(raster)
    return list(groups.values())


def _coincide(first: Raster, second: Raster) -> bool:
    if not same_crs(first.grid.crs, second.grid.crs):
        return False
    a, b = first.grid.bounds, second.grid.bounds_on(first.grid)
    shared = a.overlap(b)
    return shared > _SAME_PLACE * (a.area + b.area - shared)


def split_dates(rasters: Sequence[Raster]) -> list[Layer]:
    """Return the rasters of one sensor and place by date.

    A date is told by the file's name (20230714, 2023-07-14); without one, rasters that cover the
    same rectangle are of different dates, and others lie side by side.
    """
    dates = [date_of(raster.path) for raster in rasters]
    layers: dict[str | int, Layer] = {}
    if all(dates):
        for date, raster in sorted(zip(dates, rasters, strict=True), key=lambda pair: str(pair[0])):
            layers.setdefault(str(date), []).append(raster)
    else:
        for group in _places(rasters):
            for number, raster in enumerate(group):
                layers.setdefault(number, []).append(raster)
    return list(layers.values())


def date_of(path: str) -> str | None:
    """Return the date in a file's name as YYYYMMDD; None where no calendar has it."""
    for found in _DATE.finditer(Path(path).stem):
        try:
            return datetime.date(*map(int, found.groups())).strftime("%Y%m%d")
        except ValueError:  # such as the 35th of April
            continue
    return None
