"""Rasters by GDAL: GeoTIFF, JPEG 2000, ENVI and SRTM tiles, with all that GDAL knows of them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from decur.data.decoding import AS_COPIED, Decoded, Header, Position, check_size, turned_size
from decur.errors import BadSampleError, DataError, needing

# The drivers that an extension stands for. GDAL would else open whatever a file's content says: a
# file of XML that is named .tif could name others on disk or in the network.
DRIVERS = {
    ".tif": ("GTiff",),
    ".tiff": ("GTiff",),
    ".jp2": ("JP2OpenJPEG", "JP2KAK", "JP2ECW", "JP2MrSID"),
    ".hdr": ("ENVI",),
    ".hgt": ("SRTMHGT",),
    ".exr": ("EXR",),
}
# How the files begin that Pillow reads, and the driver of each, for what only GDAL reads beside it.
_PICTURES = {b"\x89PNG": "PNG", b"\xff\xd8": "JPEG", b"BM": "BMP", b"GIF": "GIF"}
_PICTURES |= {b"RIFF": "WEBP", b"P": "PNM"}
# Data that lies beside an ENVI header; such a file also stands for both.
ENVI_DATA = frozenset({".img", ".dat", ".raw", ".bsq", ".bil", ".bip"})

_ORIENTATION = 274  # tag of TIFF
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def read_raster(path: Path, max_pixels: int, *, indices: bool = False) -> Decoded:
    """Read a raster with its masks, nodata, scale and offset, upright.

    Args:
        path: one of `DRIVERS`, or data of ENVI beside its header.
        max_pixels: height times width that is read at most.
        indices: return the indices of a palette, not its colours; 1 bit as 0 and 1.

    Raises:
        BadSampleError: for a file that cannot be used; other errors are GDAL's.
        DataError: if rasterio is not installed.
    """
    with _opened(path) as pages:
        first = pages[0]
        for page in pages:
            _check_page(path, page, len(pages), max_pixels)
        decoded = _read_page(first, indices)
        if len(pages) > 1:
            decoded = _stack([decoded, *(_read_page(page, indices) for page in pages[1:])])
        decoded.position = position_of(first)
        return decoded.turned(_orientation(first, path))


def raster_header(path: Path, max_pixels: int) -> Header:
    """Return the header of a raster.

    Raises:
        BadSampleError, DataError: as `read_raster`.
    """
    with _opened(path) as pages:
        source = pages[0]
        _check_page(path, source, len(pages), max_pixels)
        header = header_of(source, pages=len(pages))
        return replace(header, size=turned_size(header.size, _orientation(source, path)))


def header_of(source: Any, pages: int = 1) -> Header:
    """Return what an open raster says of itself; its size as it lies in the file, not turned.

    Args:
        source: the raster, or the first of its pages.
        pages: how many there are, all alike.
    """
    measured = measured_bands(source)
    count, names = len(measured), [source.descriptions[band - 1] for band in measured]
    if (colours := _palette(source)) is not None:
        count, names = colours.shape[1], []
    units = tuple(unit for unit in source.units if unit)
    kinds = {np.dtype(kind) for kind in source.dtypes}
    plain = not is_scaled(source)
    bands = count * pages
    return Header(
        bands=bands,
        size=source.shape,
        is_byte=kinds == {np.dtype(np.uint8)} and plain,
        names=tuple(names) if len(set(filter(None, names))) == bands else None,
        alpha=len(measured) < source.count,
        is_integer=all(kind.kind in "iu" for kind in kinds) and plain,
        units=units if len(units) == source.count else None,
    )


def position_of(source: Any) -> Position | None:
    """Return where a raster lies on the Earth; None where it does not say."""
    transform = source.transform
    if not source.crs or not has_place(transform):
        return None
    return Position(source.crs, transform, source.shape)


def has_place(transform: Any) -> bool:
    """Return whether a transform is that of a map; of what is none it is the identity."""
    t = transform
    return bool((t.a, t.b, t.c, t.d, t.e, t.f) != (1, 0, 0, 0, 1, 0))


def _check_page(path: Path, page: Any, pages: int, max_pixels: int) -> None:
    itemsize = max(np.dtype(kind).itemsize for kind in page.dtypes)
    check_size(path, page.count * pages, page.shape, max_pixels, itemsize=itemsize)


def place_errors() -> tuple[type[Exception], ...]:
    """Return what rasterio raises where a place cannot be told in another reference system."""
    rasterio = import_rasterio(".tif")
    from rasterio._err import CPLE_BaseError

    return (rasterio.errors.RasterioError, rasterio.errors.CRSError, CPLE_BaseError)


def companions(path: Path) -> list[Path]:
    """Return the files beside a raster that are read with it: its mask, metadata, ENVI's data."""
    beside = [path.with_name(path.name + ending) for ending in (".msk", ".aux.xml")]
    if path.suffix.lower() == ".hdr":
        beside.append(_envi_data(path))
    return [file for file in beside if file.is_file()]


@cache
def import_rasterio(suffix: str) -> Any:
    """Return rasterio.

    Args:
        suffix: of the files that need it, for the message.

    Raises:
        DataError: if it is not installed.
    """
    with needing(f"reading {suffix}", "eo", DataError):
        import rasterio
        from rasterio.errors import NodataShadowWarning, NotGeoreferencedWarning
    logger = logging.getLogger("rasterio")
    if logger.level == logging.NOTSET:
        # Below that GDAL tells, in lines of its own, what it also raises or reads all the same.
        logger.setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile needs no map
    warnings.filterwarnings("ignore", category=NodataShadowWarning)  # see `transparent_band`
    return rasterio


@cache
def driver_of(suffix: str) -> str:
    """Return the driver for an extension that this GDAL has."""
    with import_rasterio(suffix).Env() as env:
        there = env.drivers()
    for driver in DRIVERS[suffix]:
        if driver in there:
            return driver
    wanted = " nor ".join(DRIVERS[suffix])
    raise DataError(f"this GDAL has no {wanted}, which reads {suffix}; convert such files to .tif")


@contextmanager
def _opened(path: Path) -> Iterator[list[Any]]:
    """Open a raster, and each of its pages if it has several."""
    suffix = path.suffix.lower()
    rasterio = import_rasterio(suffix)
    try:
        driver = driver_of(".hdr" if suffix in ENVI_DATA else suffix)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    file = _envi_data(path) if suffix == ".hdr" else path
    with ExitStack() as stack:
        stack.enter_context(rasterio.Env(**_gdal(path)))
        source = stack.enter_context(rasterio.open(file, driver=driver))
        if driver == "ENVI":
            _refuse_short(path, source)
        names = source.subdatasets
        pages = [stack.enter_context(rasterio.open(n, driver=driver)) for n in names] or [source]
        kinds = {(page.shape, page.dtypes, page.colorinterp) for page in pages[1:]}
        if kinds and kinds != {(pages[0].shape, pages[0].dtypes, pages[0].colorinterp)}:
            sizes = ", ".join(f"{page.height} x {page.width}" for page in pages[:4])
            raise BadSampleError(
                path,
                f"has {len(pages)} pages that differ in size or kind ({sizes}); keep one a file",
            )
        yield pages


@contextmanager
def open_raster(path: Path) -> Iterator[Any]:
    """Open a raster, or the first of its pages, with the driver that its extension stands for.

    Raises:
        DataError: if rasterio is not installed.
    """
    if path.suffix.lower() in DRIVERS:
        with _opened(path) as pages:
            yield pages[0]
    else:
        rasterio = import_rasterio(f"what lies beside {path.suffix.lower()}")
        with open(path, "rb") as file:
            start = file.read(4)
        driver = next((name for begins, name in _PICTURES.items() if start.startswith(begins)), "")
        with rasterio.Env(**_gdal(path)), rasterio.open(path, driver=driver or "PNG") as source:
            yield source


def _gdal(path: Path) -> dict[str, str]:
    """Return options of GDAL that keep it from listing the whole folder at each opening.

    Listing takes seconds where the folder holds 250,000 files. "EMPTY_DIR" is the fastest, but
    hides the files beside a raster, so it is for rasters that have none.
    """
    mask = path.with_name(path.name + ".msk")
    if mask.is_file():
        with open(mask, "rb") as file:
            if file.read(4) not in _TIFF:  # GDAL would open it with any driver
                raise BadSampleError(mask, "is no mask, which is a TIFF; delete it")
    elif (
        path.suffix.lower() in (".tif", ".tiff", ".jp2")
        and not path.with_name(path.name + ".aux.xml").is_file()
    ):
        return {"GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
    # Metadata beside a raster may name an overview; nothing is fetched for it.
    return {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE", "CPL_VSIL_CURL_ALLOWED_EXTENSIONS": "{noext}"}


def _envi_data(header: Path) -> Path:
    """Return the file whose pixels an ENVI header describes."""
    stem = header.with_suffix("")
    endings = [ending for one in sorted(ENVI_DATA) for ending in (one, one.upper())]
    for file in (stem, *(stem.with_suffix(ending) for ending in endings)):
        if file.is_file():
            return file
    tried = ", ".join(sorted(ENVI_DATA))
    raise BadSampleError(header, f"has no data beside it ({stem.name} with {tried}); copy it too")


def _refuse_short(path: Path, source: Any) -> None:
    """Refuse an ENVI header that promises more than its data holds, where GDAL reads zeros."""
    tags = source.tags(ns="ENVI")
    if tags.get("file_compression", "0") != "0":
        return
    file = Path(source.name)
    size = np.dtype(source.dtypes[0]).itemsize * source.count * source.height * source.width
    wanted, there = size + int(tags.get("header_offset", 0)), file.stat().st_size
    if wanted > there:
        raise BadSampleError(
            path,
            f"promises {wanted:,} bytes, and {file.name} has {there:,}; {AS_COPIED}",
        )


def measured_bands(source: Any) -> list[int]:
    """Return the bands, counted from 1, that are no transparency.

    A band that is marked as transparency and has a name of its own (NIR) is a measurement: GDAL
    marks the fourth band of 8 bits when nobody says what it is.
    """
    alpha = import_rasterio("").enums.ColorInterp.alpha
    if source.count == 1:
        return [1]
    named = ("alpha", "transparency", "mask")
    return [
        band
        for band, (kind, name) in enumerate(
            zip(source.colorinterp, source.descriptions, strict=True), start=1
        )
        if kind is not alpha or (name and name.lower() not in named)
    ] or list(source.indexes)


def transparent_band(source: Any) -> int | None:
    """Return the first band that is transparency, counted from 1; None where none is."""
    measured = measured_bands(source)
    return next((band for band in source.indexes if band not in measured), None)


def _read_page(source: Any, indices: bool) -> Decoded:
    pixels = source.read()  # (C, H, W)
    decoded = Decoded(pixels, pixels.dtype, names=source.descriptions)
    for value, rows in _nodata(source, pixels.dtype).items():
        if len(rows) == len(pixels):
            decoded.add_holes(pixels == value)
        else:
            holes = np.zeros(pixels.shape, bool)
            holes[rows] = pixels[rows] == value
            decoded.add_holes(holes)
    if has_masks(source):
        decoded.add_holes(source.read_masks() == 0)
    if is_scaled(source):
        decoded.linear = linear(source)
    if transparent := transparent_band(source):  # GDAL's masks lack it where nodata is stated, too
        alpha = decoded.pixels[transparent - 1 : transparent]
        decoded = decoded.picked([band - 1 for band in measured_bands(source)])
        decoded.alpha = alpha
    if not indices and (colours := _palette(source)) is not None:
        _colour(decoded, colours)
    elif not indices and (step := _grey_step(source)) > 1:
        decoded.pixels = decoded.pixels * np.uint8(step)
    if not has_place(source.transform):
        return decoded
    return north_up(decoded, source.transform)


def has_masks(source: Any) -> bool:
    """Return whether a band has a mask that is neither nodata nor transparency.

    One of all bands is flagged as such; that of a single band, in `.msk`, has no flag at all.
    """
    flags = import_rasterio("").enums.MaskFlags
    told = {flags.all_valid, flags.nodata, flags.alpha}
    of_all = flags.per_dataset
    return any(
        not told & set(of) or (of_all in of and flags.alpha not in of)
        for of in source.mask_flag_enums
    )


def linear(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return scale and offset of each band, (C,) both."""
    scale = np.array(source.scales)
    return np.where(scale == 0, 1, scale), np.array(source.offsets)


def _nodata(source: Any, kind: np.dtype) -> dict[Any, list[int]]:
    """Return the rows of the bands of which each value means "no measurement"."""
    found: dict[Any, list[int]] = {}
    for row, value in enumerate(source.nodatavals):
        if value is None or value != value:
            continue
        if kind.kind in "iu":
            limits = np.iinfo(kind)
            if not limits.min <= value <= limits.max or value != int(value):
                continue  # a value that no pixel can have
        with np.errstate(over="ignore"):
            found.setdefault(kind.type(value), []).append(row)
    return found


def _palette(source: Any) -> np.ndarray | None:
    """Return the colours of a palette: (values, 3) uint8, or (values, 1) for black and white."""
    if len(measured_bands(source)) != 1 or source.colorinterp[0].name != "palette":
        return None
    entries = source.colormap(1)
    values = np.iinfo(source.dtypes[0]).max + 1
    colours = np.zeros((values, 3), np.uint8)
    for value, colour in entries.items():
        if 0 <= value < values:
            colours[value] = colour[:3]
    grey = (colours == colours[:, :1]).all()
    is_plain = _bits(source) == 1 or "MINISWHITE" in source.tags(ns="IMAGE_STRUCTURE")
    return colours[:, :1] if is_plain and grey else colours


def _colour(decoded: Decoded, colours: np.ndarray) -> None:
    decoded.pixels = np.moveaxis(colours[decoded.pixels[0]], -1, 0)  # (1 or 3, H, W)
    decoded.of_palette = True
    decoded.stored, decoded.names = decoded.pixels.dtype, ()


def _bits(source: Any) -> int:
    return int(source.tags(1, ns="IMAGE_STRUCTURE").get("NBITS", 0))


def _grey_step(source: Any) -> int:
    """Return the factor that stretches grey of 1, 2 or 4 bits to 8, as every viewer does."""
    if source.count != 1 or source.dtypes[0] != "uint8":
        return 1
    return {1: 255, 2: 85, 4: 17}.get(_bits(source), 1)


def is_scaled(source: Any) -> bool:
    """Return whether a file names a scale or an offset that make units of its numbers."""
    scaled = any(scale not in (0, 1) for scale in source.scales)
    return scaled or any(offset != 0 for offset in source.offsets)


def north_up(decoded: Decoded, transform: Any) -> Decoded:
    """Turn a raster up whose rows go north, and around whose columns go west."""
    if transform.b or transform.d:
        return decoded  # a rotated grid is as it is
    orientation = {(False, True): 4, (True, False): 2, (True, True): 3}
    return decoded.turned(orientation.get((transform.a < 0, transform.e > 0), 1))


def _orientation(source: Any, path: Path) -> int:
    """Return the orientation that a TIFF without a map is tagged with; GDAL leaves it aside."""
    if source.driver != "GTiff" or has_place(source.transform):
        return 1
    with open(path, "rb") as file:
        start = file.read(8)
        if start[2:3] == b"+" or start[3:4] == b"+":  # BigTIFF
            start += file.read(8)
        directory = ImageFileDirectory_v2(start)
        file.seek(directory.next)
        directory.load(file)
    value = directory.get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _stack(pages: list[Decoded]) -> Decoded:
    """Return pages of one size and kind as one picture of all their bands."""
    holes = None
    if any(page.holes is not None for page in pages):
        holes = np.concatenate(
            [
                np.zeros(page.pixels.shape, bool)
                if page.holes is None
                else np.broadcast_to(page.holes, page.pixels.shape)
                for page in pages
            ]
        )
    alphas = [page.alpha for page in pages if page.alpha is not None]
    linear = [page.linear for page in pages if page.linear is not None]
    if linear and len(linear) < len(pages):
        raise ValueError("only some of its pages have a scale")
    return Decoded(
        np.concatenate([page.pixels for page in pages]),
        pages[0].stored,
        holes,
        np.minimum.reduce(alphas) if alphas else None,
        sum((page.names for page in pages), ()),
        (np.concatenate([s for s, _ in linear]), np.concatenate([o for _, o in linear]))
        if linear
        else None,
    )
