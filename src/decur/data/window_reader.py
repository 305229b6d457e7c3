"""Windows of rasters of any size, CRS and resolution, read onto one grid."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import torch
from torch import Tensor

from decur.data import rasters as gdal_rasters
from decur.data.decoding import off_values, unreadable
from decur.data.grid import Grid, counted_around, unit_of, wraps
from decur.data.map_rasters import Raster, gdal, is_one_of, opened
from decur.data.selection import spaced
from decur.errors import BadSampleError

SQUARE = 256  # pixels along the squares that tell what a raster holds
_OPEN = 24  # rasters that a process keeps open


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
        boxes = [raster.grid.bounds_on(grid) for raster in self.rasters]
        self._near = [raster.grid.near(grid) for raster in self.rasters]
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
            pixels = self._read_one(number, part, (row, column))  # (C, h, w)
            found = pixels if found is None else np.where(np.isnan(found), pixels, found)
            if found.dtype == np.uint8 or not np.isnan(found).any():
                break
        if found is None:
            found = np.full((self.channels, height, width), np.nan, dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(found))

    def _read_one(self, number: int, part: Grid, corner: tuple[int, int]) -> np.ndarray:
        raster = self.rasters[number]
        errors: tuple[type[Exception], ...] = (*gdal_rasters.place_errors(), ValueError)
        try:
            with gdal():
                offset = self._near[number].offset(part)
                if offset is not None:
                    pixels = self._read_aligned(raster, offset, (part.height, part.width))
                else:
                    pixels = self._read_warped(raster, corner, (part.height, part.width))
        except errors as error:
            raise BadSampleError(raster.path, unreadable(error)) from error
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
        holes = is_one_of(pixels, self.nodata)  # (C, h, w), in the numbers of the file
        flags = gdal_rasters.import_rasterio(".tif").enums.MaskFlags
        if any(of != [flags.all_valid] for of in source.mask_flag_enums):
            holes |= source.read_masks(bands, window=window) == 0
        if alpha := gdal_rasters.transparent_band(source):  # not in the masks beside a nodata
            holes |= source.read(alpha, window=window) == 0
        pixels = _in_units(pixels, source, bands, self.nodata)
        if holes.any():
            pixels = np.where(holes, np.float32(np.nan), pixels).astype(np.float32)
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
        warped = _kept_warped(raster.path, self.grid, nearest=self.nearest, nodata=self.nodata)
        window = Window(columns[0], rows[0], columns[1] - columns[0], rows[1] - rows[0])
        pixels = _in_units(warped.read(bands, window=window), source, bands, self.nodata)
        whole[:, rows[0] - row : rows[1] - row, columns[0] - column : columns[1] - column] = pixels
        return whole

    def _wanted(self, source: Any) -> list[int]:
        there = gdal_rasters.measured_bands(source)
        return there if self.bands is None else [there[band] for band in self.bands]


def read_squares(
    rasters: Sequence[Raster],
    most: int,
    *,
    nodata: float | tuple[float, ...] | None = None,
    bands: tuple[int, ...] | None = None,
) -> Iterator[Tensor]:
    """Read squares of 256 pixels from all over some rasters, at their own pixels: (C, h, w) each.

    Args:
        rasters: any; of many only some are read.
        most: squares, about.
        nodata: as of `WindowReader`.
        bands: as of `WindowReader`.
    """
    chosen = spaced(rasters, most)
    along = max(1, int((most / len(chosen)) ** 0.5))  # squares along a side of a raster
    for raster in chosen:
        grid = raster.grid
        height, width = min(SQUARE, grid.height), min(SQUARE, grid.width)
        reader = WindowReader(grid, [raster], nodata=nodata, bands=bands)
        downs = np.linspace(0, grid.height - height, along + 2)[1:-1].astype(int)
        rights = np.linspace(0, grid.width - width, along + 2)[1:-1].astype(int)
        for row in np.unique(downs).tolist():
            for column in np.unique(rights).tolist():
                yield reader.read(row, column, height, width)


def nodata_values(nodata: float | tuple[float, ...] | None) -> tuple[float, ...]:
    """Return the values that a sensor's `nodata` names."""
    if nodata is None:
        return ()
    return nodata if isinstance(nodata, tuple) else (nodata,)


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
    return _kept((path, *_state(path)), lambda: opened(path))


def _state(path: str) -> tuple[int, ...]:
    """Return what changes when a file is written anew."""
    state = os.stat(path) if os.path.exists(path) else None
    return (state.st_size, state.st_mtime_ns) if state else ()


def _kept_warped(path: str, grid: Grid, *, nearest: bool, nodata: tuple[float, ...]) -> Any:
    from rasterio.enums import Resampling
    from rasterio.vrt import WarpedVRT

    def make() -> Any:
        # What is no measurement must not be mixed into its neighbours.
        source, hole = _of_one_hole(_kept_open(path), nodata)
        return WarpedVRT(
            source,
            src_crs=_counted(source, grid),
            crs=grid.crs,
            transform=grid.affine,
            height=grid.height,
            width=grid.width,
            resampling=Resampling.nearest if nearest else Resampling.bilinear,
            dtype="float32",
            src_nodata=hole,
            nodata=np.nan,
            UNIFIED_SRC_NODATA="NO",  # a pixel may lack one band only
        )

    return _kept((path, *_state(path), grid, nearest, nodata), make)


def _counted(source: Any, grid: Grid) -> Any:
    """Return the CRS of a raster, with longitudes counted around it where some are beyond 180.

    Without that GDAL finds nothing of it beyond 180 degrees, and nothing that is a turn away.
    """
    if not (source.crs.is_geographic and wraps(source.crs.to_wkt())):
        return source.crs
    west, east = source.bounds.left, source.bounds.right
    edges = [west, east]
    if unit_of(grid.crs) == "degrees":
        edges += [grid.bounds.west, grid.bounds.east]
    if max(map(abs, edges)) <= 180 + source.res[0]:
        return source.crs
    return type(source.crs).from_string(counted_around((west + east) / 2))


def _of_one_hole(source: Any, nodata: tuple[float, ...]) -> tuple[Any, float]:
    """Return a raster in which one value means "no measurement", as GDAL's warper needs it.

    Returns:
        The raster itself, or a virtual one over it in which holes of every kind are NaN; and the
        value.
    """
    values = {value for value in (source.nodata, *nodata) if value is not None and value == value}
    flags = gdal_rasters.import_rasterio(".tif").enums.MaskFlags
    masked = gdal_rasters.has_masks(source) or any(
        flags.alpha in of for of in source.mask_flag_enums
    )
    of_one_band = not all(source.mask_flag_enums)  # which the warper does not look at
    if len(values) + masked < 2 and not of_one_band:
        return source, values.pop() if values else np.nan
    file = _virtual(source, source.name, "<UseMaskBand>true</UseMaskBand>")  # the file's own holes
    for value in nodata:  # one virtual raster over another, as each knows one value only
        file = _virtual(source, file, f"<NODATA>{_as_stored(source, value)!r}</NODATA>")
    return gdal_rasters.import_rasterio(".tif").open(file, driver="VRT", sharing=False), np.nan


def _as_stored(source: Any, value: float) -> float:
    """Return a value with the precision of a raster's pixels."""
    return float(np.float32(value)) if "float32" in source.dtypes else float(value)


def _virtual(source: Any, file: str, holes: str) -> str:
    """Return the text of a virtual raster in which what `holes` names is NaN.

    Args:
        source: whose size, place and number of bands it has.
        file: whose pixels it shows: a path, or the text of another virtual raster.
        holes: elements of GDAL's `ComplexSource`.
    """
    bands = "".join(
        f'<VRTRasterBand dataType="Float32" band="{band}"><NoDataValue>nan</NoDataValue>'
        f'<ComplexSource><SourceFilename shared="0">{escape(file)}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand>{holes}</ComplexSource></VRTRasterBand>"
        for band in source.indexes
    )
    return (
        f'<VRTDataset rasterXSize="{source.width}" rasterYSize="{source.height}">'
        f"<SRS>{escape(source.crs.to_wkt())}</SRS>"
        f"<GeoTransform>{', '.join(map(repr, source.transform.to_gdal()))}</GeoTransform>"
        f"{bands}</VRTDataset>"
    )


def _in_units(
    pixels: np.ndarray, source: Any, bands: Sequence[int], nodata: tuple[float, ...]
) -> np.ndarray:
    """Return pixels as float32 in the units that the file's scale and offset give; 8-bit stays."""
    if gdal_rasters.is_scaled(source):
        scales = np.array([source.scales[band - 1] or 1 for band in bands])[:, None, None]
        offsets = np.array([source.offsets[band - 1] for band in bands])[:, None, None]
        return off_values(pixels * scales + offsets, nodata)
    if pixels.dtype in (np.uint8, np.float32):
        return pixels
    with np.errstate(over="ignore"):  # a value that means "no measurement" may be beyond float32
        return pixels.astype(np.float32)
