"""Rasters of any size with their place on the map: their headers, and what they have measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import numpy as np

from decur.data import rasters as gdal_rasters
from decur.data.decoding import Header, unreadable
from decur.data.files import bands_taken, check_bands
from decur.data.grid import LONGITUDE_LATITUDE, Grid, crs_text, same_crs, unit_of, wraps
from decur.errors import BadSampleError, DataError
from decur.modality import Modality

RASTERS = (".tif", ".tiff", ".jp2")  # that may lie on a map
_GDAL_CACHE = 2**26  # bytes of decoded blocks that GDAL keeps in a process
_WIDE = 4  # windows across from which on strips cost more than they give


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
        palette: whether the pixels are numbers of colours, or of classes that have colours.
    """

    path: str
    grid: Grid
    bands: int
    names: tuple[str, ...] | None
    is_byte: bool
    has_holes: bool
    strip: int
    palette: bool = False

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
    name = quote(str(path))  # in commands that a person copies
    with open_briefly(path) as source:
        if source.gcps[0] and source.crs is None:
            raise DataError(
                f"{path}: has ground control points and no grid; warp it onto one: "
                f"gdalwarp -t_srs EPSG:CODE {name} warped.tif"
            )
        if source.rpcs is not None and source.crs is None:
            raise DataError(
                f"{path}: has the coefficients of a camera (RPC) and no grid; warp it onto one: "
                f"gdalwarp -rpc -t_srs EPSG:CODE {name} warped.tif"
            )
        if source.crs is None:
            raise DataError(
                f"{path}: has no CRS, so that its place is unknown; give it one: "
                f"rio edit-info --crs EPSG:CODE {name}"
            )
        t = source.transform
        if t.is_identity:
            raise DataError(
                f"{path}: has a CRS and no transform, so that its place is unknown; give it one: "
                f"rio edit-info --transform '[WIDTH, 0, LEFT, 0, -HEIGHT, TOP]' {name}"
            )
        if any(np.dtype(kind).kind == "c" for kind in source.dtypes):
            raise DataError(
                f"{path}: holds complex numbers; write amplitudes or decibels: "
                f"rio calc '(abs (read 1))' {name} amplitude.tif"
            )
        if t.b or t.d or t.a < 0:
            raise DataError(
                f"{path}: its rows do not run from west to east (transform {tuple(t)[:6]}); turn "
                f"it: gdalwarp {name} turned.tif"
            )
        north = max(source.bounds.top, source.bounds.bottom)
        resolution = (abs(t.a), abs(t.e))
        grid = Grid(crs_text(source.crs), t.c, north, resolution, source.height, source.width)
        try:
            grid.bounds_in(LONGITUDE_LATITUDE)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
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
            palette=source.colorinterp[0].name == "palette",
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
        f"{quote(first)} tiled.tif makes one fast (so does rio convert --co tiled=yes)"
    )


def warn_palette(rasters: Sequence[Raster]) -> str | None:
    """Return a line that says which rasters of a sensor are numbers of colours."""
    coloured = [raster.path for raster in rasters if raster.palette]
    if not coloured:
        return None
    return (
        f"{len(coloured)} of {len(rasters)} rasters have a palette, whose numbers are read and "
        f"not its colours: gdal_translate -expand rgb {quote(coloured[0])} colours.tif makes three "
        "bands of them"
    )


def warn_beyond(rasters: Sequence[Raster]) -> str | None:
    """Return a line that says which rasters have longitudes that others cannot be read onto."""
    beyond = [
        raster
        for raster in rasters
        if unit_of(raster.grid.crs) == "degrees"
        and not wraps(raster.grid.crs)
        and max(-raster.grid.bounds.west, raster.grid.bounds.east) > 180 + raster.grid.resolution[0]
    ]
    if len(beyond) in (0, len(rasters)):
        return None
    first = beyond[0]
    return (
        f"{first.path}: its longitudes run from {first.grid.bounds.west:g} to "
        f"{first.grid.bounds.east:g}, and nothing of it beyond 180 degrees is found from other "
        f"rasters: gdalwarp -t_srs EPSG:4326 {quote(first.path)} turned.tif"
    )


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
    errors = gdal_rasters.place_errors()
    from rasterio.warp import transform

    xs = grid.west + (np.arange(grid.width) + 0.5) * grid.resolution[0]
    ys = grid.north - (np.arange(grid.height) + 0.5) * grid.resolution[1]
    x, y = (axis.ravel() for axis in np.meshgrid(xs, ys))
    if not same_crs(grid.crs, raster.grid.crs):
        try:
            x, y = (np.array(axis) for axis in transform(grid.crs, raster.grid.crs, x, y))
        except errors as error:
            raise DataError(
                f"{raster.path}: cannot be read onto pixels of {grid.crs[:40]} that show no Earth; "
                "cut them off the first sensor's raster, or warp it: gdalwarp -t_srs EPSG:CODE"
            ) from error
    own = raster.grid
    if unit_of(own.crs) == "degrees":  # as the raster counts them
        middle = (own.bounds.west + own.bounds.east) / 2
        x = x - 360 * np.round((x - middle) / 360)
    columns = np.floor((x - own.west) / own.resolution[0]).reshape(grid.height, grid.width)
    rows = np.floor((own.north - y) / own.resolution[1]).reshape(grid.height, grid.width)
    inside = (rows >= 0) & (rows < own.height) & (columns >= 0) & (columns < own.width)
    if not (raster.has_holes or nodata) or not inside.any():
        return np.asarray(inside)
    west, _, east, _ = own.bounds_on(grid)
    factor = max(1, int(grid.resolution[0] * own.width / (east - west)))  # pixels along a cell
    height, width = -(-own.height // factor), -(-own.width // factor)
    with open_briefly(raster.path) as source:
        band = gdal_rasters.measured_bands(source)[0]
        shape = (height, width)
        there = source.read_masks(band, out_shape=shape) > 0  # (height, width)
        if nodata or np.dtype(source.dtypes[band - 1]).kind == "f":
            values = source.read(band, out_shape=shape)
            there &= np.isfinite(values) & ~is_one_of(values, nodata)
        if source.transform.e > 0:
            there = there[::-1]
    down = np.clip(rows * height // own.height, 0, height - 1).astype(int)
    right = np.clip(columns * width // own.width, 0, width - 1).astype(int)
    return np.asarray(inside & there[down, right])


def is_one_of(pixels: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
    """Return which pixels have one of some values, in the precision of the pixels."""
    found = np.zeros(pixels.shape, dtype=bool)
    for value in values:
        found |= pixels == value
    return found


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
        raise DataError(
            f"{path}: scenes are {', '.join(RASTERS)}; others, virtual ones too, become that by "
            f"gdal_translate -co TILED=YES -co COMPRESS=DEFLATE {quote(str(path))} scene.tif"
        )
    if not Path(path).is_file():
        raise DataError(f"{path}: no such file")
    try:
        return rasterio.open(path, driver=gdal_rasters.driver_of(suffix))
    except rasterio.errors.RasterioError as error:
        raise BadSampleError(path, unreadable(error)) from error


@contextmanager
def open_briefly(path: str | Path) -> Iterator[Any]:
    """Open a raster for a look at its header or its pixels.

    Raises:
        DataError, BadSampleError: as `opened`; also if its pixels cannot be read.
    """
    with gdal(), opened(path) as source:
        try:
            yield source
        except gdal_rasters.import_rasterio(".tif").errors.RasterioError as error:
            raise BadSampleError(path, unreadable(error)) from error
