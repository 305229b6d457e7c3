"""Grids of pixels on a map, and windows of rasters of any size read onto them."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from decur.data import rasters as gdal_rasters
from decur.data.decoding import Header
from decur.data.files import bands_taken, check_bands
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

LONGITUDE_LATITUDE = "OGC:CRS84"  # of footprints: x is the longitude
RASTERS = (".tif", ".tiff", ".jp2")  # that may lie on a map
_GDAL_CACHE = 2**26  # bytes of decoded blocks that GDAL keeps in a process
_OPEN = 24  # rasters that a process keeps open
_SAME = 1e-3  # pixels by which the grids of two rasters may differ and still be the same
_WIDE = 4  # windows across from which on strips cost more than they give


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
        """Return a grid over the same rectangle, from the same corner, of another resolution."""
        bounds = self.bounds
        width = max(1, -_floor(-(bounds.east - bounds.west) / resolution))
        height = max(1, -_floor(-(bounds.north - bounds.south) / resolution))
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

    def footprint(self) -> list[tuple[float, float]]:
        """Return the corners as longitude and latitude, counter-clockwise and closed: 5 points."""
        gdal_rasters.import_rasterio(".tif")
        from rasterio.warp import transform

        west, south, east, north = self.bounds
        xs = [west, east, east, west, west]
        ys = [south, south, north, north, south]
        longitudes, latitudes = transform(self.crs, LONGITUDE_LATITUDE, xs, ys)
        return list(zip(longitudes, latitudes, strict=True))


def _floor(value: float) -> int:
    """Round down, but take what is a rounding error below a whole number for that number."""
    nearest = round(value)
    return nearest if abs(value - nearest) < _SAME else int(np.floor(value))


@lru_cache(maxsize=2**16)  # it takes a millisecond
def _moved(crs: str, onto: str, bounds: Bounds) -> Bounds:
    rasterio = gdal_rasters.import_rasterio(".tif")
    from rasterio.warp import transform_bounds

    try:
        return Bounds(*transform_bounds(crs, onto, *bounds))
    except rasterio.errors.RasterioError as error:
        places = ", ".join(f"{edge:g}" for edge in bounds)
        raise DataError(
            f"a raster in {crs[:40]} with edges at {places} cannot be placed in {onto[:40]} "
            f"({error}); correct its CRS"
        ) from error


@cache
def same_crs(first: str, second: str) -> bool:
    """Return whether two descriptions are of one coordinate reference system."""
    if first == second:
        return True
    from rasterio.crs import CRS

    return bool(CRS.from_user_input(first) == CRS.from_user_input(second))


def crs_text(crs: Any) -> str:
    """Return a CRS of rasterio as text: its code where it has one, else WKT."""
    code = crs.to_authority()
    return ":".join(code) if code else str(crs.to_wkt())


@dataclass(frozen=True)
class Raster:
    """A raster with its place on the map, as its header says, without its pixels.

    Args:
        path: of the file.
        grid: its own pixels, north up.
        bands: their number, without transparency.
        names: of the bands, None where a band has none.
        is_byte: whether the pixels are 8-bit, and no scale is to be applied.
        has_holes: whether some pixels may hold no measurement.
        strip: rows of a block that is as wide as the raster; 0 where it is tiled.
    """

    path: str
    grid: Grid
    bands: int
    names: tuple[str, ...] | None
    is_byte: bool
    has_holes: bool
    strip: int

    def untiled(self, window: int) -> bool:
        """Return whether reading a window of so many pixels decodes far more than the window."""
        return self.strip > 0 and self.grid.width > _WIDE * window


def read_raster_header(path: str | Path) -> Raster:
    """Return what the header of a georeferenced raster says.

    Args:
        path: a .tif, .tiff or .jp2 file.

    Raises:
        DataError: if it is no raster, has no CRS, or its rows do not run from west to east.
        BadSampleError: if it cannot be read.
    """
    with gdal(), opened(path) as source:
        if source.gcps[0] and source.crs is None:
            raise DataError(
                f"{path}: has ground control points and no grid; warp it onto one: "
                f"gdalwarp -t_srs EPSG:CODE {path} warped.tif"
            )
        if source.crs is None:
            raise DataError(
                f"{path}: has no CRS, so that its place is unknown; give it one: "
                f"rio edit-info --crs EPSG:CODE {path}"
            )
        t = source.transform
        if t.is_identity:
            raise DataError(
                f"{path}: has a CRS and no transform, so that its place is unknown; give it one: "
                f"rio edit-info --transform '[WIDTH, 0, LEFT, 0, -HEIGHT, TOP]' {path}"
            )
        if any(np.dtype(kind).kind == "c" for kind in source.dtypes):
            raise DataError(
                f"{path}: holds complex numbers; write amplitudes or decibels: "
                f"rio calc '(abs (read 1))' {path} amplitude.tif"
            )
        if t.b or t.d or t.a < 0:
            raise DataError(
                f"{path}: its rows do not run from west to east (transform {tuple(t)[:6]}); turn "
                f"it: gdalwarp {path} turned.tif"
            )
        north = max(source.bounds.top, source.bounds.bottom)
        resolution = (abs(t.a), abs(t.e))
        grid = Grid(crs_text(source.crs), t.c, north, resolution, source.height, source.width)
        rows = gdal_rasters.measured_bands(source)
        names = tuple(source.descriptions[row - 1] for row in rows)
        height, width = source.block_shapes[0]
        strips = width >= source.width and height < source.height
        flags = gdal_rasters.import_rasterio(".tif").enums.MaskFlags
        valid = all(of == [flags.all_valid] for of in source.mask_flag_enums)
        return Raster(
            path=str(path),
            grid=grid,
            bands=len(rows),
            names=names if all(names) and len(set(names)) == len(names) else None,
            is_byte=all(kind == "uint8" for kind in source.dtypes)
            and not gdal_rasters.is_scaled(source),
            has_holes=not valid or any(np.dtype(kind).kind == "f" for kind in source.dtypes),
            strip=height if strips else 0,
        )


def warn_untiled(rasters: Sequence[Raster], window: int) -> str | None:
    """Return a line that says which rasters are slow to read in windows, and how to mend that."""
    slow = [raster for raster in rasters if raster.untiled(window)]
    if not slow:
        return None
    first = slow[0].path
    return (
        f"{len(slow)} of {len(rasters)} rasters are stored in strips, so that each window of "
        f"{window} px decodes whole rows: gdal_translate -co TILED=YES -co COMPRESS=DEFLATE "
        f"{first} tiled.tif makes one fast (so does rio convert --co tiled=yes)"
    )


class WindowReader:
    """Reads windows of rasters onto a grid, whatever the CRS and resolution of the rasters.

    Where the pixels of a raster coincide with the grid's they are read as they are; else GDAL
    warps them (`WarpedVRT`): bilinear, with the averaging that a coarser grid needs.

    Args:
        grid: that windows are cut from.
        rasters: whose pixels fill it; a pixel is taken from the first that has measured it.
        nodata: raw values that mean "no measurement", besides those that the files name.
        nearest: take the nearest pixel, as classes need it.
        bands: rows of the rasters' bands that are wanted, from 0; None for all.
    """

    def __init__(
        self,
        grid: Grid,
        rasters: Sequence[Raster],
        *,
        nodata: float | tuple[float, ...] | None = None,
        nearest: bool = False,
        bands: tuple[int, ...] | None = None,
    ) -> None:
        self.grid, self.rasters, self.nearest, self.bands = grid, list(rasters), nearest, bands
        self.nodata = nodata_values(nodata)
        boxes = [raster.grid.bounds_in(grid.crs) for raster in self.rasters]
        self._boxes = np.array(boxes).reshape(-1, 4)  # (R, 4), as `Bounds`

    @property
    def channels(self) -> int:
        """Return the number of bands of a window."""
        return len(self.bands) if self.bands is not None else self.rasters[0].bands

    def read(self, row: int, column: int, height: int, width: int) -> Tensor:
        """Read a window, which may reach beyond the rasters.

        Args:
            row: its first row in the grid; may be negative.
            column: its first column in the grid.
            height: its rows.
            width: its columns.

        Returns:
            (C, height, width), uint8 where all of it is 8-bit and measured, else float32 with NaN
            where there is no measurement.

        Raises:
            BadSampleError: naming the file that cannot be read.
        """
        part = self.grid.window(row, column, height, width)
        found: np.ndarray | None = None
        west, south, east, north = part.bounds
        across = (self._boxes[:, 0] < east) & (self._boxes[:, 2] > west)
        along = (self._boxes[:, 1] < north) & (self._boxes[:, 3] > south)
        for number in np.flatnonzero(across & along).tolist():
            pixels = self._read_one(self.rasters[number], part, (row, column))  # (C, h, w)
            found = pixels if found is None else np.where(np.isnan(found), pixels, found)
            if found.dtype == np.uint8 or not np.isnan(found).any():
                break
        if found is None:
            found = np.full((self.channels, height, width), np.nan, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(found))

    def _read_one(self, raster: Raster, part: Grid, corner: tuple[int, int]) -> np.ndarray:
        gdal_rasters.import_rasterio(".tif")
        from rasterio.errors import RasterioError

        try:
            with gdal():
                offset = raster.grid.offset(part)
                if offset is not None:
                    pixels = self._read_aligned(raster, offset, (part.height, part.width))
                else:
                    pixels = self._read_warped(raster, corner, (part.height, part.width))
        except (RasterioError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise BadSampleError(raster.path, f"cannot be read ({reason}); copy it anew") from error
        for value in self.nodata:
            if (holes := pixels == value).any():
                pixels = np.where(holes, np.float32(np.nan), pixels)
        if pixels.dtype != np.uint8 and np.isinf(pixels).any():
            raise BadSampleError(raster.path, "has infinite values; write them as NaN")
        return pixels

    def _read_aligned(
        self, raster: Raster, offset: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray:
        """Read pixels as they are; what lies beyond the raster is NaN."""
        from rasterio.windows import Window

        source = _kept_open(raster.path)
        rows, columns = (
            (max(first, 0), min(first + length, whole))
            for first, length, whole in zip(offset, size, source.shape, strict=True)
        )
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        bands = self._wanted(source)
        flipped = source.transform.e > 0
        if flipped:  # its rows run from south to north
            top = source.height - rows[1]
            window = Window(columns[0], top, columns[1] - columns[0], rows[1] - rows[0])
        pixels = source.read(bands, window=window)
        if any(flag.name != "all_valid" for of in source.mask_flag_enums for flag in of):
            measured = source.read_masks(bands, window=window) > 0
            if not measured.all():
                pixels = np.where(measured, pixels, np.float32(np.nan)).astype(np.float32)
        pixels = _in_units(pixels, source, bands)
        pixels = pixels[:, ::-1] if flipped else pixels
        if pixels.shape[1:] == size:
            return pixels
        whole = np.full((len(pixels), *size), np.nan, dtype=np.float32)
        down, right = rows[0] - offset[0], columns[0] - offset[1]
        whole[:, down : down + pixels.shape[1], right : right + pixels.shape[2]] = pixels
        return whole

    def _read_warped(
        self, raster: Raster, corner: tuple[int, int], size: tuple[int, int]
    ) -> np.ndarray:
        """Read pixels through a `WarpedVRT` on the grid."""
        from rasterio.windows import Window

        source = _kept_open(raster.path)
        (row, column), (height, width) = corner, size
        rows = (max(row, 0), min(row + height, self.grid.height))
        columns = (max(column, 0), min(column + width, self.grid.width))
        whole = np.full((self.channels, height, width), np.nan, dtype=np.float32)
        if rows[0] >= rows[1] or columns[0] >= columns[1]:
            return whole
        bands = self._wanted(source)
        hole = self.nodata[0] if self.nodata else None
        warped = _kept_warped(raster.path, self.grid, nearest=self.nearest, hole=hole)
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        pixels = _in_units(warped.read(bands, window=window), source, bands)
        whole[:, rows[0] - row : rows[1] - row, columns[0] - column : columns[1] - column] = pixels
        return whole

    def _wanted(self, source: Any) -> list[int]:
        there = gdal_rasters.measured_bands(source)
        return there if self.bands is None else [there[band] for band in self.bands]


def nodata_values(nodata: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the values that a sensor's `nodata` names."""
    if nodata is None:
        return ()
    return nodata if isinstance(nodata, tuple) else (nodata,)


def measured_cells(raster: Raster, grid: Grid, nodata: tuple[float, ...] = ()) -> np.ndarray:
    """Return which cells of a coarse grid a raster has measured, at the centre of each cell.

    Args:
        raster: any raster.
        grid: of coarse cells.
        nodata: raw values that mean "no measurement", besides those that the file names.

    Returns:
        (height, width) bool. Of the raster itself at most one pixel for each cell is looked at, in
        its first band.
    """
    from rasterio.warp import transform

    xs = grid.west + (np.arange(grid.width) + 0.5) * grid.resolution[0]
    ys = grid.north - (np.arange(grid.height) + 0.5) * grid.resolution[1]
    x, y = (axis.ravel() for axis in np.meshgrid(xs, ys))
    if not same_crs(grid.crs, raster.grid.crs):
        x, y = (np.array(axis) for axis in transform(grid.crs, raster.grid.crs, x, y))
    own = raster.grid
    columns = np.floor((x - own.west) / own.resolution[0]).reshape(grid.height, grid.width)
    rows = np.floor((own.north - y) / own.resolution[1]).reshape(grid.height, grid.width)
    inside = (rows >= 0) & (rows < own.height) & (columns >= 0) & (columns < own.width)
    if not (raster.has_holes or nodata) or not inside.any():
        return np.asarray(inside)
    west, _, east, _ = own.bounds_in(grid.crs)
    factor = max(1, int(grid.resolution[0] * own.width / (east - west)))  # pixels along a cell
    height, width = -(-own.height // factor), -(-own.width // factor)
    with gdal(), opened(raster.path) as source:
        band = gdal_rasters.measured_bands(source)[0]
        shape = (height, width)
        there = source.read_masks(band, out_shape=shape) > 0  # (height, width)
        if nodata or np.dtype(source.dtypes[band - 1]).kind == "f":
            values = source.read(band, out_shape=shape)
            there &= np.isfinite(values) & ~np.isin(values, nodata)
        if source.transform.e > 0:
            there = there[::-1]
    down = np.clip(rows * height // own.height, 0, height - 1).astype(int)
    right = np.clip(columns * width // own.width, 0, width - 1).astype(int)
    return np.asarray(inside & there[down, right])


# -- GDAL ------------------------------------------------------------------------------------------


def gdal() -> Any:
    """Return the environment that rasters are read in: a small cache, and no listing of folders."""
    rasterio = gdal_rasters.import_rasterio(".tif")
    return rasterio.Env(
        GDAL_CACHEMAX=_GDAL_CACHE,
        GDAL_DISABLE_READDIR_ON_OPEN="TRUE",
        # Metadata beside a raster may name an overview; nothing is fetched for it.
        CPL_VSIL_CURL_ALLOWED_EXTENSIONS="{noext}",
    )


def opened(path: str | Path) -> Any:
    """Open a raster with the driver that its extension stands for.

    Raises:
        DataError: for another extension.
        BadSampleError: if it cannot be opened.
    """
    rasterio = gdal_rasters.import_rasterio(".tif")
    suffix = Path(path).suffix.lower()
    if suffix not in RASTERS:
        raise DataError(f"{path}: is no raster with a place; use {', '.join(RASTERS)}")
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        return rasterio.open(path, driver=gdal_rasters.driver_of(suffix))
    except rasterio.errors.RasterioError as error:
        reason = " ".join(str(error).split())
        raise BadSampleError(path, f"cannot be read ({reason}); copy it anew") from error


class _Kept(threading.local):  # what GDAL opens is for one thread
    def __init__(self) -> None:
        self.opened: OrderedDict[tuple[Any, ...], Any] = OrderedDict()


_kept_here = _Kept()


def _kept(key: tuple[Any, ...], make: Any) -> Any:
    """Return what a key stands for, which a thread keeps for the next window."""
    key, opened = (os.getpid(), *key), _kept_here.opened
    if key in opened:
        opened.move_to_end(key)
        return opened[key]
    if len(opened) >= _OPEN:
        opened.popitem(last=False)
    opened[key] = made = make()
    return made


def _kept_open(path: str) -> Any:
    state = os.stat(path) if os.path.exists(path) else None
    when = (state.st_size, state.st_mtime_ns) if state else ()
    return _kept((path, *when), lambda: opened(path))


def _kept_warped(path: str, grid: Grid, *, nearest: bool, hole: float | None) -> Any:
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    def make() -> Any:
        source = _kept_open(path)
        # what is no measurement must not be mixed into its neighbours
        nodata = next((v for v in (source.nodata, hole) if v is not None), np.nan)
        return WarpedVRT(
            source,
            crs=grid.crs,
            transform=grid.affine,
            height=grid.height,
            width=grid.width,
            resampling=Resampling.nearest if nearest else Resampling.bilinear,
            dtype="float32",
            src_nodata=nodata,
            nodata=np.nan,
            UNIFIED_SRC_NODATA="NO",  # a pixel may lack one band only
        )

    return _kept((path, grid, nearest, hole), make)


def _in_units(pixels: np.ndarray, source: Any, bands: Sequence[int]) -> np.ndarray:
    """Return pixels as float32 in the units that the file's scale and offset give; 8-bit stays."""
    if gdal_rasters.is_scaled(source):
        scales = np.array([source.scales[band - 1] or 1 for band in bands])[:, None, None]
        offsets = np.array([source.offsets[band - 1] for band in bands])[:, None, None]
        pixels = pixels * scales + offsets
    if pixels.dtype in (np.uint8, np.float32):
        return pixels
    return pixels.astype(np.float32)


def refuse_far(names: tuple[str, str], first: Raster, second: Raster) -> DataError:
    """Return the error that two rasters lie in different places, with where each lies."""
    places = []
    for name, raster in zip(names, (first, second), strict=True):
        longitude, latitude = raster.grid.footprint()[0]
        places.append(f"{name} ({raster.path}) at {longitude:.4f}, {latitude:.4f}")
    return DataError(
        f"the scenes do not overlap: {' and '.join(places)} (longitude, latitude of a corner); "
        "give rasters of one place, or correct their CRS"
    )


def wanted_bands(raster: Raster, modality: Modality) -> tuple[int, ...] | None:
    """Return which bands of a raster are a sensor's; None for all of them.

    Raises:
        DataError: if the raster has neither the bands by name nor as many of them.
    """
    size = (raster.grid.height, raster.grid.width)
    header = Header(raster.bands, size, raster.is_byte, names=raster.names)
    names = raster.names or ()
    if modality.picks or (names and names != modality.bands):
        rows = bands_taken(names, raster.bands, modality.picks or modality.bands)
        if rows is not None:
            return None if rows == list(range(raster.bands)) else tuple(rows)
    if raster.bands != modality.channels:
        try:
            check_bands(header, modality)
        except DataError as error:
            raise DataError(f"{raster.path}: {error}") from error
    return None
