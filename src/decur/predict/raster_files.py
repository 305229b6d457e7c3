"""The rasters of a map: tiles, the virtual raster that joins them, the Cloud Optimized GeoTIFF."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote
from typing import Any
from xml.sax import saxutils

import numpy as np
from numpy.typing import NDArray

from decur.data.grid import Grid
from decur.data.rasters import import_rasterio
from decur.errors import ConfigError, WriteError
from decur.runs import atomic, put_in_place, reason_not_written, write_text

BLOCK = 512  # pixels along a block of a map
_SMALLEST = 128  # pixels along a block of many bands
_CACHE = 2**27  # bytes of blocks that GDAL keeps while it writes a map
_WITH_OVERVIEWS = 1.34  # times the bytes of the pixels
Colour = tuple[int, int, int]
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_TAG = re.compile(rb'<MDI key="DECUR_MAP">(\w+)</MDI>')  # as `write_virtual` writes it
_HEADER = 2**20  # bytes of a virtual raster before its bands, at most
_GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "float32": "Float32"}


@dataclass(frozen=True)
class MapLayout:
    """What the pixels of a raster are.

    Args:
        dtype: "uint8", "uint16" or "float32".
        nodata: what stands where nothing was seen.
        bands: their names.
        classes: names by the value of a pixel; empty where values are no classes.
        colours: of the classes.
        tags: further metadata.
    """

    dtype: str
    nodata: float
    bands: tuple[str, ...]
    classes: tuple[str, ...] = ()
    colours: tuple[Colour, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Return the bytes of a pixel, all bands."""
        return np.dtype(self.dtype).itemsize * len(self.bands)

    @property
    def block(self) -> int:
        """Return the side of a block, smaller where hundreds of bands would fill the memory."""
        side = BLOCK
        while side > _SMALLEST and self.bytes * side**2 > _CACHE // 8:
            side //= 2
        return side


def refuse_crs(grid: Grid, reference: str) -> None:
    """Refuse a reference system that a GeoTIFF cannot hold, such as that of a rotated pole.

    Args:
        grid: of a map.
        reference: the raster whose reference system it has, for the message.

    Raises:
        ConfigError: with the line that warps it.
    """
    rasterio = import_rasterio(".tif")
    shape = {"count": 1, "height": 1, "width": 1, "dtype": "uint8", "transform": grid.affine}
    with rasterio.io.MemoryFile() as memory:
        with memory.open(driver="GTiff", crs=grid.crs, **shape):
            pass
        data = memory.read()
    with rasterio.io.MemoryFile(data) as memory, memory.open() as file:  # without what lies beside
        if file.crs is None:
            raise ConfigError(
                f"{reference}: has a CRS that no GeoTIFF holds; warp it: gdalwarp -t_srs EPSG:4326 "
                f"{quote(reference)} turned.tif"
            )


def write_tile(path: Path, pixels: NDArray[Any], grid: Grid, layout: MapLayout) -> None:
    """Write pixels (bands, H, W) as a GeoTIFF, whole or not at all.

    The file is made in memory, since GDAL does not always tell when a disk is full.

    Raises:
        WriteError: if it cannot be written.
    """
    rasterio = import_rasterio(".tif")
    profile = {
        "driver": "GTiff",
        "count": len(pixels),
        "height": grid.height,
        "width": grid.width,
        "dtype": layout.dtype,
        "crs": grid.crs,
        "transform": grid.affine,
        "nodata": layout.nodata,
        "tiled": True,
        "blockxsize": layout.block,
        "blockysize": layout.block,
        "compress": "deflate",
        "zlevel": 1,
        "interleave": "band",
    }
    with rasterio.io.MemoryFile() as memory:
        with memory.open(**profile) as file:
            if layout.colours:  # before the pixels, after which GDAL changes no header
                file.write_colormap(1, dict(enumerate(layout.colours)))
            file.descriptions = layout.bands
            file.update_tags(**layout.tags)
            file.write(pixels.astype(layout.dtype, copy=False))
        data = memory.read()
    with atomic(path, len(data)) as temporary:
        temporary.write_bytes(data)


def write_virtual(
    path: Path, grid: Grid, layout: MapLayout, parts: Sequence[tuple[str, Grid]]
) -> None:
    """Write a virtual raster (VRT) that joins rasters which lie beside it.

    Args:
        path: of the .vrt file.
        grid: of the whole.
        layout: of the whole, and of each part.
        parts: name and grid of each, on the pixels of the whole.
    """
    lines = [
        f'<VRTDataset rasterXSize="{grid.width}" rasterYSize="{grid.height}">',
        f"<SRS>{escape(grid.crs)}</SRS>",
        "<GeoTransform>"
        + ", ".join(
            repr(float(v))
            for v in (grid.west, grid.resolution[0], 0, grid.north, 0, -grid.resolution[1])
        )
        + "</GeoTransform>",
        "<Metadata>",
        *(f"<MDI key={saxutils.quoteattr(k)}>{escape(v)}</MDI>" for k, v in layout.tags.items()),
        "</Metadata>",
    ]
    for number, name in enumerate(layout.bands, 1):
        lines += _band(number, name, grid, layout, parts)
    write_text(path, "\n".join([*lines, "</VRTDataset>", ""]))


def _band(
    number: int, name: str, grid: Grid, layout: MapLayout, parts: Sequence[tuple[str, Grid]]
) -> list[str]:
    """Return the lines of one band of a virtual raster."""
    lines = [
        f'<VRTRasterBand dataType="{_GDAL_TYPES[layout.dtype]}" band="{number}">',
        f"<Description>{escape(name)}</Description>",
        f"<NoDataValue>{layout.nodata}</NoDataValue>",
    ]
    if layout.colours:
        entries = [f'<Entry c1="{r}" c2="{g}" c3="{b}" c4="255"/>' for r, g, b in layout.colours]
        lines += ["<ColorInterp>Palette</ColorInterp>", "<ColorTable>", *entries, "</ColorTable>"]
    lines += _categories(layout)
    for file, part in parts:
        row, column = grid.offset(part) or (0, 0)
        size = f'xSize="{part.width}" ySize="{part.height}"'
        lines += [
            "<SimpleSource>",
            f'<SourceFilename relativeToVRT="1">{escape(file)}</SourceFilename>',
            f"<SourceBand>{number}</SourceBand>",
            f'<SrcRect xOff="0" yOff="0" {size}/>',
            f'<DstRect xOff="{column}" yOff="{row}" {size}/>',
            "</SimpleSource>",
        ]
    return [*lines, "</VRTRasterBand>"]


def escape(text: str) -> str:
    """Return a text as XML holds it, without the control characters that no XML may hold."""
    return saxutils.escape(_NOT_XML.sub("", text))


def _categories(layout: MapLayout) -> list[str]:
    if not layout.classes:
        return []
    names = [f"<Category>{escape(name)}</Category>" for name in layout.classes]
    return ["<CategoryNames>", *names, "</CategoryNames>"]


def refuse_full(path: Path, tiles: Sequence[Path]) -> None:
    """Refuse to begin with a map for which there is no room; GDAL tells late, and in many lines.

    Args:
        path: of the map.
        tiles: that it is made of; with overviews it takes a third more.

    Raises:
        WriteError: saying how much is missing.
    """
    needed = int(sum(tile.stat().st_size for tile in tiles) * _WITH_OVERVIEWS)
    if shutil.disk_usage(path.parent).free < needed:
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise WriteError(
            f"{path}: cannot be written ({reason_not_written(full, path, needed)}); make room and "
            "give the same command again"
        )


def write_optimised(source: Path, whole: Path, layout: MapLayout) -> None:
    """Write a Cloud Optimized GeoTIFF with overviews.

    Args:
        source: a raster, perhaps virtual.
        whole: the file to write, under a name that is not the final one.
        layout: of its pixels.

    Raises:
        WriteError: if it cannot be written.
    """
    rasterio = import_rasterio(".tif")
    from rasterio._err import CPLE_BaseError
    from rasterio.errors import RasterioError
    from rasterio.shutil import copy

    categorical = bool(layout.classes) or layout.dtype != "float32"
    options = {
        "COMPRESS": "DEFLATE",
        "PREDICTOR": "NO" if categorical else "YES",
        "BLOCKSIZE": layout.block,
        "OVERVIEW_RESAMPLING": "MODE" if categorical else "AVERAGE",
        "BIGTIFF": "IF_SAFER",
    }
    try:
        with _silent_gdal(), rasterio.Env(GDAL_CACHEMAX=_CACHE, GDAL_PAM_ENABLED="NO"):
            copy(source, whole, driver="COG", **options)
            _refuse_cut_off(whole)
    except (RasterioError, CPLE_BaseError, SystemError) as error:  # GDAL may fail without a word
        reason = " ".join(str(error).split())[:160]
        raise WriteError(
            f"{whole}: cannot be written ({reason}); make room and give the same command again"
        ) from error


@contextmanager
def _silent_gdal() -> Iterator[None]:
    """Keep GDAL and libtiff from printing what they also raise.

    libtiff, which no handler of Python reaches, prints that it could not write.
    """
    import rasterio._io

    tiff = ctypes.CDLL(rasterio._io.__file__)  # its names are also those of what it links
    silence = getattr(tiff, "TIFFSetErrorHandler", None)  # None where GDAL hides its own libtiff
    if silence is not None:
        silence.restype, silence.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    before = silence(None) if silence is not None else None
    try:
        yield
    finally:
        if silence is not None:
            silence(before)


def publish(whole: Path, out: Path, layout: MapLayout) -> None:
    """Give a complete map its final name.

    Names of classes, which a GeoTIFF cannot hold, go into `out`.aux.xml, where GDAL and QGIS look
    for them; the metadata `CLASSES` of the map has them, too.

    Args:
        whole: the map.
        out: its final name, on the same disk.
        layout: of its pixels.
    """
    beside = out.with_name(f"{out.name}.aux.xml")
    if layout.classes:
        lines = ["<PAMDataset>", '<PAMRasterBand band="1">', *_categories(layout)]
        write_text(beside, "\n".join([*lines, "</PAMRasterBand>", "</PAMDataset>", ""]))
    else:
        beside.unlink(missing_ok=True)
    put_in_place(whole, out)


def tag_of_virtual(path: Path) -> str | None:
    """Return what tells the map of joined parts from others; None where a file joins none."""
    try:
        found = _TAG.search(path.read_bytes()[:_HEADER])
    except OSError:
        return None
    return found[1].decode() if found else None


def _refuse_cut_off(path: Path) -> None:
    """Read the last block of each band, as a disk that is full cuts a file off."""
    rasterio = import_rasterio(".tif")
    with rasterio.open(path, driver="GTiff") as file:
        # all bands at once: where their pixels lie side by side a block holds all of them
        file.read(window=((file.height - 1, file.height), (file.width - 1, file.width)))


def class_tags(classes: Sequence[str]) -> dict[str, str]:
    """Return the metadata that names classes by the value of a pixel, as JSON."""
    return {"CLASSES": json.dumps(dict(enumerate(classes)), ensure_ascii=False)}


def tag_of(path: Path) -> str | None:
    """Return what tells a map from others; None where the file is no map of decur."""
    rasterio = import_rasterio(".tif")
    try:
        with rasterio.open(path, driver="GTiff") as file:
            tag: str | None = file.tags().get("DECUR_MAP")
            return tag
    except rasterio.errors.RasterioError:
        return None
