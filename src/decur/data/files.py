"""Picture files to tensors: GeoTIFF, JPEG 2000, PNG, JPEG and NumPy arrays."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from decur.errors import BadSampleError, DataError

RASTER = frozenset({".tif", ".tiff", ".jp2"})  # read by rasterio
PICTURE = frozenset({".png", ".jpg", ".jpeg"})  # read by Pillow
EXTENSIONS = RASTER | PICTURE | {".npy"}

# What Pillow raises for files that are cut short or corrupt.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)
_MODES = {"1": "L", "P": "RGB", "PA": "RGBA", "CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB"}
_AS_COPIED = "copy or download the file anew, or delete it"


@dataclass(frozen=True)
class Header:
    """The header of a file, which is read without its pixels.

    Args:
        bands: their number.
        size: height and width in pixels.
        is_byte: whether the pixels are 8-bit.
        names: of the bands, where the file has one for each.
    """

    bands: int
    size: tuple[int, int]
    is_byte: bool
    names: tuple[str, ...] | None = None


def read_image(
    path: str | Path,
    bands: int | None = None,
    *,
    nodata: float | tuple[float, ...] | None = None,
) -> Tensor:
    """Read the pixels of one file.

    Palette and CMYK pictures become RGB. A NumPy array is (H, W) or (C, H, W).

    Args:
        path: .tif, .tiff, .jp2, .png, .jpg, .jpeg or .npy.
        bands: number of bands the file must have; None takes any.
        nodata: raw values that mean "no measurement", besides NaN and the file's own.

    Returns:
        (C, H, W), in raw units: uint8 where the file is 8-bit, else float32. Pixels without a
        measurement are NaN (which makes an 8-bit picture that has any float32).

    Raises:
        BadSampleError: for a file that is missing, empty, cut short, of another number of bands,
            without one measured pixel, or with infinite values.
        DataError: for an unknown extension, or if the reader is not installed.
    """
    path = _existing(path)
    image = _read(path, bands, nodata)
    if image.is_floating_point() and image.isnan().all():
        raise BadSampleError(path, "has no measured pixel (all NaN or nodata); delete it")
    return image


def _read(
    path: Path, bands: int | None = None, nodata: float | tuple[float, ...] | None = None
) -> Tensor:
    """Read a file as `read_image` does, but allow that no pixel is measured."""
    own_nodata: float | None = None
    if path.suffix.lower() in RASTER:
        pixels, own_nodata = _read_raster(path)
    elif path.suffix.lower() in PICTURE:
        pixels = _read_picture(path)
    else:
        pixels = _read_array(path, bands)
    if bands is not None and pixels.shape[0] != bands:
        raise BadSampleError(
            path,
            f"has {_bands(pixels.shape[0])}, its modality {bands}; correct `bands` or the file",
        )
    if pixels.size == 0:
        raise BadSampleError(path, f"has no pixels (shape {pixels.shape}); {_AS_COPIED}")
    named = nodata if isinstance(nodata, tuple) else (nodata,)
    holes = {value for value in (own_nodata, *named) if value is not None}
    return _checked(path, _to_tensor(path, pixels), holes)


def read_mask(path: str | Path) -> Tensor:
    """Read a picture of class indices; of a palette picture the indices, not the colours.

    Returns:
        (H, W) int64, 255 where a file says that it holds nothing.

    Raises:
        BadSampleError: as `read_image`, but such a mask may be all 255; also for more than one
            band or fractions.
    """
    path = _existing(path)
    if path.suffix.lower() in PICTURE:
        pixels = torch.from_numpy(_read_picture(path, palette_indices=True).astype(np.int64))
    else:
        pixels = _read(path)
    if pixels.shape[0] != 1:
        raise BadSampleError(
            path, f"a mask has one band of class indices, this has {len(pixels)}; convert it"
        )
    if pixels.is_floating_point():
        pixels = pixels.nan_to_num(255)
        if (pixels != pixels.round()).any():
            raise BadSampleError(path, "a mask holds whole numbers, this has fractions; convert it")
    return pixels[0].long()


def read_header(path: str | Path) -> Header:
    """Read a file's number of bands and size without its pixels.

    Raises:
        BadSampleError, DataError: as `read_image`.
    """
    path = _existing(path)
    suffix = path.suffix.lower()
    if suffix in RASTER:
        rasterio = _rasterio(suffix)
        try:
            with rasterio.Env(**_gdal(path)), rasterio.open(path) as source:
                names = tuple(name for name in source.descriptions if name)
                return Header(
                    bands=source.count,
                    size=(source.height, source.width),
                    is_byte=all(kind == "uint8" for kind in source.dtypes),
                    names=names if len(set(names)) == source.count else None,
                )
        except rasterio.errors.RasterioError as error:
            raise BadSampleError(path, _unreadable(error)) from error
    if suffix in PICTURE:
        try:
            with Image.open(path) as picture:
                mode = _mode(picture)
                deep = mode.startswith(("I", "F")) or _is_deep_colour(picture)
                return Header(len(Image.new(mode, (1, 1)).getbands()), picture.size[::-1], not deep)
        except _PILLOW_ERRORS as error:
            raise BadSampleError(path, _unreadable(error)) from error
    array = _load_array(path, mmap_mode="r")
    shape = _channels_first(path, array.shape)
    return Header(shape[0], shape[1:], array.dtype == np.uint8)


def resize(image: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize (C, H, W) bilinearly with antialiasing, without spreading NaN over the filter."""
    if size is None or image.shape[-2:] == size:
        return image
    x = image[None].float()  # (1, C, H, W)
    measured = ~x.isnan()
    weight = measured.float()
    x = interpolate(x.nan_to_num(0), size, mode="bilinear", antialias=True)
    if not measured.all():
        weight = interpolate(weight, size, mode="bilinear", antialias=True)
        x = torch.where(weight >= 0.5, x / weight.clamp_min(0.5), torch.nan)
    return x[0].round().to(torch.uint8) if image.dtype == torch.uint8 else x[0]


def resize_mask(mask: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Resize class indices (H, W) by the nearest neighbour; float32 holds 0 to 255 exactly."""
    if size is None or mask.shape == size:
        return mask
    return interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0].long()


def read_files(paths: Sequence[str | Path]) -> np.ndarray:
    """Read the bytes of files, one after the other and not decoded: (bytes,) uint8.

    Raises:
        BadSampleError: naming the file that cannot be read.
    """
    found = []
    for path in paths:
        try:
            found.append(np.fromfile(path, dtype=np.uint8))
        except OSError as error:
            raise BadSampleError(path, _unreadable(error)) from error
    return np.concatenate(found)


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS:
        raise DataError(
            f"{path}: cannot read this kind of file; use {', '.join(sorted(EXTENSIONS))}"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadSampleError(path, "no such file; restore it or remove its id") from error
    if size == 0:
        raise BadSampleError(path, f"is empty (0 bytes); {_AS_COPIED}")
    return path


def _gdal(path: Path) -> dict[str, str]:
    """Return options of GDAL that keep it from listing the whole folder at each opening.

    Listing takes seconds where the folder holds 250,000 files. "EMPTY_DIR" is the fastest, but
    hides the files beside a raster, the mask of its pixels too.
    """
    beside = path.with_name(path.name + ".msk").is_file()
    return {"GDAL_DISABLE_READDIR_ON_OPEN": "TRUE" if beside else "EMPTY_DIR"}


@cache
def _rasterio(suffix: str) -> Any:
    try:
        import rasterio
        from rasterio.errors import NotGeoreferencedWarning
    except ImportError as error:
        raise DataError(f"reading {suffix} needs rasterio: pip install 'decur[eo]'") from error
    warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)  # a tile needs no map
    return rasterio


def _read_raster(path: Path) -> tuple[np.ndarray, float | None]:
    rasterio = _rasterio(path.suffix.lower())
    try:
        with rasterio.Env(**_gdal(path)), rasterio.open(path) as source:
            pixels, flags = source.read(), rasterio.enums.MaskFlags
            # The file's own mask, inside it or beside it; transparency is a band like others.
            if any(
                flags.per_dataset in of and flags.alpha not in of for of in source.mask_flag_enums
            ):
                measured = source.read_masks() > 0
                if not measured.all():  # else 8-bit pixels stay so, as with nodata
                    pixels = np.where(measured, pixels, np.nan)
            return pixels, source.nodata
    except (rasterio.errors.RasterioError, ValueError) as error:
        raise BadSampleError(path, _unreadable(error)) from error


def _read_picture(path: Path, palette_indices: bool = False) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            if _is_deep_colour(picture):  # Pillow would drop the lower 8 bits without a word
                return _read_deep_colour(path)
            step = _grey_step(picture) if palette_indices else 1
            picture.load()
            keep = palette_indices and picture.mode in ("1", "P")
            pixels = np.asarray(picture if keep else picture.convert(_mode(picture)))
    except _PILLOW_ERRORS as error:
        raise BadSampleError(path, _unreadable(error)) from error
    if step > 1:
        pixels = pixels // step
    return pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)


def _mode(picture: Image.Image) -> str:
    """Return the mode of Pillow that a picture is read in."""
    if picture.mode == "P" and "transparency" in picture.info:
        return "RGBA"
    return _MODES.get(picture.mode, picture.mode)


def _grey_step(picture: Image.Image) -> int:
    """Return the factor by which Pillow stretches a grey PNG of 2 or 4 bits to 8."""
    raw = {tile.args for tile in getattr(picture, "tile", ()) if isinstance(tile.args, str)}
    return 85 if "L;2" in raw else 17 if "L;4" in raw else 1


def _is_deep_colour(picture: Image.Image) -> bool:
    """Return whether this is a PNG of 16 bits and more than one band."""
    return picture.format == "PNG" and any(
        isinstance(tile.args, str)
        and tile.args.endswith(";16B")
        and len(tile.args.split(";")[0]) > 1
        for tile in getattr(picture, "tile", ())
    )


def _read_deep_colour(path: Path) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]

    encoded = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    try:
        pixels: np.ndarray = decode_image(encoded, ImageReadMode.UNCHANGED).numpy()
        return pixels
    except RuntimeError as error:
        raise BadSampleError(path, _unreadable(error)) from error


def _read_array(path: Path, bands: int | None) -> np.ndarray:
    array = _load_array(path)
    return array.reshape(_channels_first(path, array.shape, bands))


def _load_array(path: Path, mmap_mode: Literal["r"] | None = None) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError, TokenError) as error:
        raise BadSampleError(path, _unreadable(error)) from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise BadSampleError(path, "is an .npz archive; save its array with numpy.save")
    return array


def _channels_first(
    path: Path, shape: tuple[int, ...], bands: int | None = None
) -> tuple[int, int, int]:
    """Return the shape as (C, H, W), and refuse one that looks like (H, W, C)."""
    if len(shape) == 2:
        return (1, *shape)
    if len(shape) != 3:
        raise BadSampleError(path, f"has shape {shape}; save it as (C, H, W) or (H, W)")
    c, h, w = shape
    if c != bands and (w == bands or w < min(c, h)):
        raise BadSampleError(path, f"has shape {shape}, which looks like (H, W, C); save (C, H, W)")
    return (c, h, w)


def _to_tensor(path: Path, pixels: np.ndarray) -> Tensor:
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if pixels.dtype == np.uint8:
        return torch.from_numpy(np.array(pixels, order="C"))
    if pixels.dtype.kind not in "iuf":
        raise BadSampleError(path, f"has pixels of type {pixels.dtype}; save real numbers")
    with np.errstate(over="ignore"):  # float64 beyond float32 is found as infinite below
        return torch.from_numpy(np.array(pixels, dtype=np.float32, order="C"))


def _checked(path: Path, image: Tensor, holes: set[float]) -> Tensor:
    for value in holes:
        # As float: of an 8-bit image torch compares modulo 256 otherwise. NaN equals nothing, and
        # needs nothing done.
        hole = torch.eq(image, float(value))
        if hole.any():
            image = image.to(torch.float32).masked_fill(hole, torch.nan)
    if image.is_floating_point() and image.isinf().any():
        raise BadSampleError(path, "has infinite values; write pixels without a measurement as NaN")
    return image


def _bands(n: int) -> str:
    return f"{n} band" if n == 1 else f"{n} bands"


def _unreadable(error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"is no picture or is cut short; {_AS_COPIED}"
    return f"cannot be read ({' '.join(str(error).split())}); {_AS_COPIED}"
