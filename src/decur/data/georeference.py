"""Where pictures lie on the Earth: whether those of a pair show the same place, on one grid."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decur.data import rasters
from decur.data.decoding import Position, decoding
from decur.data.grid import Bounds, Grid, crs_text
from decur.errors import BadSampleError, DataError

METRES_PER_DEGREE = 111_320.0  # metres in a degree of latitude
SAME_GRID = 0.5  # pixels of the coarser picture: borders that differ by less are the same


@dataclass(frozen=True)
class Place:
    """Where a raster lies.

    Args:
        crs: its coordinate reference system, as rasterio has it.
        transform: from columns and rows to coordinates, rows going south and columns east.
        size: height and width in pixels.
    """

    crs: Any
    transform: Any
    size: tuple[int, int]

    @property
    def bounds(self) -> Bounds:
        """The box around its four corners."""
        height, width = self.size
        t = self.transform
        corners = [(x, y) for x in (0, width) for y in (0, height)]
        xs = [t.a * x + t.b * y + t.c for x, y in corners]
        ys = [t.d * x + t.e * y + t.f for x, y in corners]
        return Bounds(min(xs), min(ys), max(xs), max(ys))

    @property
    def pixel(self) -> float:
        """The longer side of a pixel, in units of the reference system."""
        t = self.transform
        return max(math.hypot(t.a, t.d), math.hypot(t.b, t.e))

    @property
    def grid(self) -> Grid | None:
        """Its pixels as a grid; None where rows do not run from west to east."""
        t = self.transform
        if t.b or t.d:
            return None
        return Grid(crs_text(self.crs), t.c, t.f, (t.a, -t.e), *self.size)

    def divided(self, size: tuple[int, int]) -> Place:
        """Return the same rectangle in another number of pixels."""
        rows, columns = self.size[0] / size[0], self.size[1] / size[1]
        t = self.transform
        finer = type(t)(t.a * columns, t.b * rows, t.c, t.d * columns, t.e * rows, t.f)
        return Place(self.crs, finer, size)

    def metres(self, distance: float) -> float:
        """Return a distance in units of the reference system in metres."""
        if self.crs.is_geographic:
            return distance * METRES_PER_DEGREE
        return float(distance * self.crs.linear_units_factor[1])


def read_place(file: str | Path) -> Place | None:
    """Return where a raster lies; None where it does not say, cannot be read, or is no raster.

    The places of up to 20,000 files are kept, as long as the files do not change: opening one
    takes milliseconds, as reading a small picture does.
    """
    path = Path(file)
    try:
        beside = rasters.companions(path)
        if path.suffix.lower() not in rasters.DRIVERS and not beside:
            return None
        seen = [part.stat() for part in (path, *beside)]
    except (OSError, DataError):
        return None  # comes up again when it is read as a sample
    return _place_of(path, tuple((one.st_mtime_ns, one.st_size) for one in seen))


@lru_cache(maxsize=20_000)
def _place_of(path: Path, _seen: tuple[tuple[int, int], ...]) -> Place | None:
    """Return where a raster lies, which was changed last at times and has sizes as given."""
    try:
        with decoding(path), rasters.open_raster(path) as source:
            position = rasters.position_of(source)
    except DataError:
        return None  # comes up again when it is read as a sample
    if position is None:
        return None
    return place_at(position._replace(crs=_shared(position.crs)))


def place_at(position: Position) -> Place:
    """Return the place of a raster as its pixels are read: turned up, where its rows go north."""
    crs, transform, size = position
    if not (transform.b or transform.d):  # the reader turns such rasters up, see rasters
        height, width = size
        xs = sorted((transform.c, transform.c + width * transform.a))
        ys = sorted((transform.f, transform.f + height * transform.e))
        transform = type(transform)(abs(transform.a), 0.0, xs[0], 0.0, -abs(transform.e), ys[1])
    return Place(crs, transform, (size[0], size[1]))


@cache
def _shared(crs: Any) -> Any:
    """Return one object for all places of a reference system, which is large."""
    return crs


@dataclass(frozen=True)
class Apart:
    """How two places differ.

    Args:
        overlap: whether any of one lies in the other.
        offset: the largest distance between corresponding borders, in metres; 0 on one grid.
    """

    overlap: bool
    offset: float


def compare_places(reference: Place, other: Place) -> Apart:
    """Return how far a place is from another, of any reference system."""
    bounds, pixel = other.bounds, other.pixel
    if other.crs != reference.crs:
        from rasterio.warp import transform_bounds

        try:
            bounds = Bounds(*transform_bounds(other.crs, reference.crs, *bounds))
        except rasters.place_errors():
            return Apart(overlap=False, offset=math.inf)
        if not all(map(math.isfinite, bounds)):
            return Apart(overlap=False, offset=math.inf)
        if bounds.east < bounds.west:  # across 180 degrees
            bounds = bounds._replace(east=bounds.east + 360)
        height, width = other.size
        pixel = max((bounds.east - bounds.west) / width, (bounds.north - bounds.south) / height)
    own = reference.bounds
    if reference.crs.is_geographic:  # degrees may be counted from elsewhere
        turn = 360 * round((own.west + own.east - bounds.west - bounds.east) / 720)
        bounds = bounds._replace(west=bounds.west + turn, east=bounds.east + turn)
    offset = max(abs(a - b) for a, b in zip(own, bounds, strict=True))
    if offset <= SAME_GRID * max(reference.pixel, pixel):
        offset = 0.0
    return Apart(overlap=own.overlap(bounds) > 0, offset=reference.metres(offset))


def compare_pair(files: Mapping[str, str | None]) -> tuple[str, dict[str, Apart]]:
    """Compare the pictures of a sample with the first that says where it lies.

    Args:
        files: `{sensor: file}` in the order of the sensors.

    Returns:
        The sensor that is the reference, empty where none says; `{other sensor: how it differs}`.
    """
    return _compared(
        {name: place for name, file in files.items() if file and (place := read_place(file))}
    )


def _compared(places: Mapping[str, Place]) -> tuple[str, dict[str, Apart]]:
    if not places:
        return "", {}
    reference, *others = places
    return reference, {name: compare_places(places[reference], places[name]) for name in others}


def refuse_apart(files: Mapping[str, str | None], places: Mapping[str, Place]) -> None:
    """Refuse a sample whose pictures do not show the same place.

    Args:
        files: `{sensor: file}` in the order of the sensors.
        places: where they lie, of those that say so.

    Raises:
        BadSampleError: naming the files.
    """
    reference, found = _compared(places)
    for name, apart in found.items():
        if not apart.overlap:
            raise BadSampleError(
                files[name],
                f"does not overlap {files[reference]}, by the coordinates in both; correct them, "
                "or the names, or take one out",
            )


def describe_places(found: Iterable[Mapping[str, Apart]]) -> tuple[int, int, float]:
    """Return how many pairs do not overlap, how many lie on other grids, and the largest offset."""
    apart = [max(one.values(), key=lambda a: a.offset) for one in found if one]
    disjoint = sum(not all(a.overlap for a in one.values()) for one in found if one)
    moved = [a.offset for a in apart if a.overlap and a.offset > 0]
    return disjoint, len(moved), max(moved, default=0.0)


def align(image: Tensor, place: Place, onto: Place, *, nearest: bool = False) -> Tensor:
    """Resample a picture onto the grid of another, with GDAL's warper.

    Args:
        image: (C, h, w), NaN where nothing is measured.
        place: where it lies.
        onto: the grid.
        nearest: take the nearest pixel, as masks need; else bilinear.

    Returns:
        (C, H, W) of the grid's size, NaN where the picture does not reach or measured nothing;
        uint8 where the picture is and no pixel is NaN.
    """
    from rasterio.enums import Resampling
    from rasterio.warp import reproject

    source = image.to(torch.float64 if nearest else torch.float32).numpy()
    out = np.full((len(source), *onto.size), np.nan, source.dtype)
    reproject(
        source,
        out,
        src_transform=place.transform,
        src_crs=place.crs,
        src_nodata=np.nan,
        dst_transform=onto.transform,
        dst_crs=onto.crs,
        dst_nodata=np.nan,
        resampling=Resampling.nearest if nearest else Resampling.bilinear,
    )
    aligned = torch.from_numpy(out)
    if image.dtype == torch.uint8 and not bool(aligned.isnan().any()):
        return aligned.round().to(torch.uint8)
    return aligned
