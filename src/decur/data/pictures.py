"""Pictures by Pillow: PNG, JPEG, BMP, GIF, WebP and PGM, in colours, upright."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, WebPImagePlugin

from decur.data import sidecars
from decur.data.decoding import Decoded, Header, check_size, turned_size
from decur.errors import BadSampleError

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".pgm"})

# Whatever an extension says, a picture may be any of these; others run programs (EPS) or are maps.
# Pillow loads the plugin of WebP, which is imported here, only when all others fail.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", WebPImagePlugin.WebPImageFile.format, "PPM")
_MODES = {"1": "L", "PA": "RGBA", "RGBX": "RGB", "RGBa": "RGBA", "La": "LA", "CMYK": "RGB"}
_MODES |= {"YCbCr": "RGB", "LAB": "RGB", "HSV": "RGB"}
_ORIENTATION = 0x0112  # tag of EXIF

# Sizes are checked here, against what a person allows.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_picture(path: Path, max_pixels: int, *, indices: bool = False) -> Decoded:
    """Read a picture in its colours, upright, with its transparency apart.

    Args:
        path: one of `EXTENSIONS`.
        max_pixels: height times width that is read at most.
        indices: return the indices of a palette, not its colours; 1, 2 and 4 bits as they are.

    Raises:
        BadSampleError: for a picture that is too large or moves; other errors are Pillow's.
    """
    with _opened(path, max_pixels) as picture:
        deep, step = _is_deep_colour(picture), _grey_step(picture)
        if deep:  # Pillow would drop the lower 8 bits without a word
            pixels = _read_deep_colour(path)
            key, clear = _transparent_colour(picture, 1), []
            orientation = _orientation(picture)
        else:
            picture.load()
            key = None if indices else _transparent_colour(picture, step)
            clear = _clear_values(picture) if indices else []
            orientation = _orientation(picture)
            keep = indices and picture.mode in ("1", "P")
            pixels = np.asarray(picture if keep else picture.convert(_mode(picture)))
            pixels = pixels[None] if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0)
            if indices and step > 1 and picture.mode == "L":
                pixels = pixels // step
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    alpha = None
    if len(pixels) in (2, 4):
        pixels, alpha = pixels[:-1], pixels[-1:]
    of_palette = picture.mode == "P" or picture.format == "GIF"  # of a ramp of grey it makes L
    decoded = Decoded(pixels, pixels.dtype, alpha=alpha, of_palette=of_palette)
    if key is not None:
        decoded.add_holes((pixels == key[:, None, None]).all(0, keepdims=True))
    if clear:
        decoded.add_holes(np.isin(pixels, clear))
    if sidecars.is_told_of(path):
        decoded = sidecars.add_told(decoded, path)
    return decoded.turned(orientation)


def picture_header(path: Path, max_pixels: int) -> Header:
    """Return the header of a picture.

    Raises:
        BadSampleError: as `read_picture`.
    """
    with _opened(path, max_pixels) as picture:
        mode = _mode(picture)
        names = Image.new(mode, (1, 1)).getbands()
        deep = mode.startswith(("I", "F")) or _is_deep_colour(picture)
        if _is_deep_colour(picture):  # of 16-bit grey with transparency Pillow makes colours
            names = tuple(_raw_mode(picture).split(";")[0])
        header = Header(
            bands=len(names) - (len(names) in (2, 4)),
            size=turned_size((picture.height, picture.width), _orientation(picture)),
            is_byte=not deep,
            alpha=len(names) in (2, 4),
            is_integer=mode != "F",
        )
    return sidecars.header_told(header, path) if sidecars.is_told_of(path) else header


def lossy_format(path: Path) -> str:
    """Return the format of a picture that does not keep its values, whatever its name; else ""."""
    try:
        with open(path, "rb") as file:
            start = file.read(16)
            if start.startswith(b"\xff\xd8"):
                return "JPEG"
            if start[:4] != b"RIFF" or start[8:12] != b"WEBP":
                return ""
            kind = start[12:]
            while kind not in (b"VP8 ", b"VP8L", b""):  # what else stands before the pixels
                length = int.from_bytes(file.read(4), "little")
                file.seek(length + length % 2, 1)
                kind = file.read(4)
            return "WebP" if kind == b"VP8 " else ""
    except OSError:
        return ""  # told of by who reads it


def _opened(path: Path, max_pixels: int) -> Image.Image:
    # Pillow's own limit, which raises at twice the number, must not be below what is allowed.
    if Image.MAX_IMAGE_PIXELS is not None:
        Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, max_pixels)
    try:
        picture = Image.open(path, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise BadSampleError(
            path,
            f"has more pixels than max_pixels ({max_pixels:,}); cut it into tiles, or set "
            "--data.max_pixels",
        ) from error
    try:
        check_size(path, 1, (picture.height, picture.width), max_pixels)
        if picture.format != "MPO" and getattr(picture, "is_animated", False):
            frames = getattr(picture, "n_frames", 2)
            raise BadSampleError(path, f"moves ({frames} frames); save one of them as a picture")
    except BaseException:
        picture.close()
        raise
    return picture


def _mode(picture: Image.Image) -> str:
    """Return the mode of Pillow that a picture is read in."""
    if picture.mode == "P":
        colours = np.reshape(picture.getpalette() or [], (-1, 3))
        grey = picture.format == "GIF" and (colours == colours[:, :1]).all()  # it has no other grey
        return ("L" if grey else "RGB") + "A" * ("transparency" in picture.info)
    return _MODES.get(picture.mode, picture.mode)


def _orientation(picture: Image.Image) -> int:
    value = picture.getexif().get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def _transparent_colour(picture: Image.Image, step: int) -> np.ndarray | None:
    """Return the one colour that a PNG without a palette calls transparent: (C,)."""
    key = picture.info.get("transparency")
    if key is None or picture.mode in ("P", "PA") or isinstance(key, bytes):
        return None
    colour = np.atleast_1d(np.array(key))
    return 255 * (colour > 0) if picture.mode == "1" else colour * step


def _clear_values(picture: Image.Image) -> list[int]:
    """Return the values of one band, or indices of a palette, that are transparent."""
    key = picture.info.get("transparency")
    if isinstance(key, bytes):  # the alpha of each entry of a palette
        return [index for index, alpha in enumerate(key) if alpha == 0]
    if not isinstance(key, int):
        return []
    return [int(key > 0)] if picture.mode == "1" else [key]


def _grey_step(picture: Image.Image) -> int:
    """Return the factor by which Pillow stretches a grey PNG of 2 or 4 bits to 8."""
    return {"L;2": 85, "L;4": 17}.get(_raw_mode(picture), 1)


def _is_deep_colour(picture: Image.Image) -> bool:
    """Return whether this is a PNG of 16 bits and more than one band."""
    bands, _, bits = _raw_mode(picture).partition(";")
    return picture.format == "PNG" and bits == "16B" and len(bands) > 1


def _raw_mode(picture: Image.Image) -> str:
    """Return how the pixels lie in the file, as Pillow names it: `L;2`, `LA;16B`."""
    stored = (tile.args for tile in getattr(picture, "tile", ()))
    return next((args for args in stored if isinstance(args, str)), "")


def _read_deep_colour(path: Path) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image  # type: ignore[import-untyped]

    encoded = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    pixels: np.ndarray = decode_image(encoded, ImageReadMode.UNCHANGED).numpy()
    return pixels
