"""Grids of pixels on a map."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np

from decur.data import rasters as gdal_rasters
from decur.errors import ConfigError, DataError

LONGITUDE_LATITUDE = "OGC:CRS84"  # reference system of footprints: x is the longitude
_LONGEST = 2**31 - 1  # pixels along a side of a raster, as GDAL counts them
_SAME = 1e-3  # pixels by which the grids of two rasters may differ and still be the same


class Bounds(NamedTuple):
    """A rectangle on a map: its left, lower, right and upper edge in units of a CRS."""

    west: float
    south: float
    east: float
    north: float

    def overlap(self, other: Bounds) -> float:
        """Return the area of what two rectangles of one CRS share."""
        width = min(self.east, other.east) - max(self.west, other.west)
        height = min(self.north, other.north) - max(self.south, other.south)
        return max(width, 0.0) * max(height, 0.0)

    @property
    def area(self) -> float:
        """Return the area in squared units of the CRS."""
        return (self.east - self.west) * (self.north - self.south)

    def union(self, other: Bounds) -> Bounds:
        """Return the smallest rectangle that holds both."""
        low = (min(self.west, other.west), min(self.south, other.south))
        high = (max(self.east, other.east), max(self.north, other.north))
        return Bounds(low[0], low[1], high[0], high[1])


@dataclass(frozen=True)
class Grid:
    """A grid of pixels whose rows run from north to south and whose columns from west to east.

    Args:
        crs: coordinate reference system, as "EPSG:32632" or as WKT.
        west: left edge, in units of the CRS.
        north: upper edge, in units of the CRS.
        resolution: width and height of a pixel, in units of the CRS.
        height: number of rows.
        width: number of columns.
    """

    crs: str
    west: float
    north: float
    resolution: tuple[float, float]
    height: int
    width: int

    @property
    def pixel(self) -> str:
        """Return the width of a pixel with its unit and the CRS, as `10 m (EPSG:32632)`."""
        return f"{self.resolution[0]:g} {unit_of(self.crs)} ({self.crs[:20]})"

    @property
    def transform(self) -> tuple[float, float, float, float, float, float]:
        """Return the affine transform (a, b, c, d, e, f): x = a column + b row + c."""
        return (self.resolution[0], 0.0, self.west, 0.0, -self.resolution[1], self.north)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Grid:
        """Return the grid that `to_dict` was called on."""
        return cls(**{**values, "resolution": tuple(values["resolution"])})

    @property
    def affine(self) -> Any:
        """Return the transform as rasterio takes it."""
        gdal_rasters.import_rasterio(".tif")
        from affine import Affine

        return Affine(*self.transform)

    @property
    def bounds(self) -> Bounds:
        """Return the outer edges of the grid."""
        east = self.west + self.width * self.resolution[0]
        return Bounds(self.west, self.north - self.height * self.resolution[1], east, self.north)

    def window(self, row: int, column: int, height: int, width: int) -> Grid:
        """Return a part of the grid, which may reach beyond its edges."""
        west = self.west + column * self.resolution[0]
        north = self.north - row * self.resolution[1]
        return Grid(self.crs, west, north, self.resolution, height, width)

    def covering(self, bounds: Bounds) -> Grid:
        """Return the grid of the same pixels that covers a rectangle."""
        across, down = self.resolution
        first = _floor((bounds.west - self.west) / across)
        top = _floor((self.north - bounds.north) / down)
        last = -_floor(-(bounds.east - self.west) / across)
        bottom = -_floor(-(self.north - bounds.south) / down)
        return self.window(top, first, max(bottom - top, 1), max(last - first, 1))

    def resampled(self, resolution: float) -> Grid:
        """Return a grid over the same rectangle, from the same corner, of another resolution.

        Raises:
            ConfigError: if it would have more pixels along a side than any raster.
        """
        bounds = self.bounds
        across, down = bounds.east - bounds.west, bounds.north - bounds.south
        if max(across, down) / resolution > _LONGEST:
            raise ConfigError(
                f"resolution: {resolution:g} makes {down / resolution:.3g} x "
                f"{across / resolution:.3g} pixels; choose a coarser one"
            )
        width, height = (max(1, -_floor(-side / resolution)) for side in (across, down))
        return Grid(self.crs, self.west, self.north, (resolution, resolution), height, width)

    def coarser(self, factor: int) -> Grid:
        """Return the grid whose pixels hold `factor` x `factor` of this one's."""
        coarse = (self.resolution[0] * factor, self.resolution[1] * factor)
        height, width = -(-self.height // factor), -(-self.width // factor)
        return Grid(self.crs, self.west, self.north, coarse, height, width)

    def offset(self, other: Grid) -> tuple[int, int] | None:
        """Return row and column of another grid's corner in this one.

        None where the pixels of the two do not coincide.
        """
        if not same_crs(self.crs, other.crs):
            return None
        down = (self.north - other.north) / self.resolution[1]
        right = (other.west - self.west) / self.resolution[0]
        across, along = (o / s for o, s in zip(other.resolution, self.resolution, strict=True))
        drift = max(abs(across - 1) * other.width, abs(along - 1) * other.height)
        if max(drift, abs(down - round(down)), abs(right - round(right))) > _SAME:
            return None
        return round(down), round(right)

    def bounds_in(self, crs: str) -> Bounds:
        """Return the edges of the grid in another CRS.

        Raises:
            DataError: if the rectangle cannot be expressed in it.
        """
        return self.bounds if same_crs(self.crs, crs) else _moved(self.crs, crs, self.bounds)

    def bounds_on(self, other: Grid) -> Bounds:
        """Return the edges of the grid in the CRS of another.

        Degrees are counted as the other does, which may be beyond 180: of the places that lie whole
        turns apart it is the one that covers most of the other, and then the nearest.

        Raises:
            DataError: if the rectangle cannot be expressed in it.
        """
        found = self.bounds_in(other.crs)
        if unit_of(other.crs) != "degrees":
            return found
        west, south, east, north = found
        east += 360 * (west > east)
        around = other.bounds
        nearest = 360 * round((around.west + around.east - west - east) / 720)
        turns = (0, nearest, nearest - 360, nearest + 360)

        def covered(turn: int) -> tuple[float, bool]:
            shared = min(east + turn, around.east) - max(west + turn, around.west)
            return max(shared, 0.0), turn == nearest

        turn = max(turns, key=covered)
        return Bounds(west + turn, south, east + turn, north)

    def near(self, other: Grid) -> Grid:
        """Return the grid as another counts its degrees, moved by whole turns around the Earth."""
        if unit_of(self.crs) != "degrees" or not same_crs(self.crs, other.crs):
            return self
        turns = round((self.bounds_on(other).west - self.west) / 360)
        return replace(self, west=self.west + 360 * turns) if turns else self

    @property
    def usual_west(self) -> float:
        """Return the left edge, in degrees from -180 to 180."""
        if unit_of(self.crs) != "degrees" or -180 <= self.west < 180:
            return self.west
        return (self.west + 180) % 360 - 180

    def footprint(self) -> list[tuple[float, float]]:
        """Return the corners as longitude and latitude, counter-clockwise and closed: 5 points.

        Raises:
            DataError: if the CRS says nothing of a place on Earth.
        """
        errors = gdal_rasters.place_errors()
        from rasterio.warp import transform

        west, south, east, north = self.bounds
        xs = [west, east, east, west, west]
        ys = [south, south, north, north, south]
        try:
            longitudes, latitudes = transform(self.crs, LONGITUDE_LATITUDE, xs, ys)
        except errors as error:
            raise DataError(f"{self.crs[:60]}: is the CRS of no place on Earth") from error
        return list(zip(longitudes, latitudes, strict=True))


def _floor(value: float) -> int:
    """Round down, but take what is a rounding error below a whole number for that number."""
    nearest = round(value)
    return nearest if abs(value - nearest) < _SAME else int(np.floor(value))


@lru_cache(maxsize=2**16)  # it takes a millisecond
def _moved(crs: str, onto: str, bounds: Bounds) -> Bounds:
    errors = gdal_rasters.place_errors()
    from rasterio.warp import transform_bounds

    reason = "it has no place there"
    try:
        moved = Bounds(*transform_bounds(crs, onto, *bounds))
        if np.isfinite(moved).all():
            return moved
    except errors as error:
        reason = " ".join(str(error).partition("{")[0].split())[:80].rstrip(" '")
    places = ", ".join(f"{edge:g}" for edge in bounds)
    raise DataError(
        f"a raster in {crs[:40]} with edges at {places} cannot be placed in {onto[:40]} "
        f"({reason}); give it the CRS of its place, or cut off what shows no Earth"
    )


@cache
def same_crs(first: str, second: str) -> bool:
    """Return whether two descriptions are of one coordinate reference system."""
    if first == second:
        return True
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(first) == CRS.from_user_input(second))


@cache
def wraps(crs: str) -> bool:
    """Return whether longitudes of a CRS can be counted beyond 180 degrees, see `counted_around`.

    PROJ's text, which says from where they are counted, holds nothing finer of a datum than that.
    """
    from rasterio.crs import CRS

    return "+proj=longlat +datum=WGS84" in CRS.from_user_input(crs).to_proj4()


def counted_around(longitude: float) -> str:
    """Return the CRS of WGS 84 in which longitudes lie within 180 degrees of the one given."""
    return f"+proj=longlat +datum=WGS84 +lon_wrap={longitude:.10g} +no_defs +wktext"


@cache
def unit_of(crs: str) -> str:
    """Return the unit of a coordinate reference system, `m`, `degrees` or its own name."""
    gdal_rasters.import_rasterio(".tif")
    from rasterio.crs import CRS

    known = CRS.from_user_input(crs)
    unit = "degrees" if known.is_geographic else str(known.linear_units)
    return "m" if unit in ("metre", "meter") else unit


def crs_text(crs: Any) -> str:
    """Return a CRS of rasterio as text: its code where it has one, else WKT."""
    code = crs.to_authority()
    return ":".join(code) if code else str(crs.to_wkt())
