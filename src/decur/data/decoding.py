"""What the readers of pictures share: the form of what they return, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from decur.errors import BadSampleError, DecurError, lacks_memory, reason_of

MAX_PIXELS = 100_000_000  # height times width that is read unless a data set is told otherwise
AS_COPIED = "copy or download the file anew, or delete it"
_SCENES = (".tif", ".tiff", ".jp2")  # that may lie on a map
_MAX_BANDS = 65_535  # what a TIFF can count
_BYTES = 20  # for each pixel that may be read: 2 GB unless a data set is told otherwise


class TooLargeError(BadSampleError):
    """A picture of more pixels than are read at once."""


@dataclass(frozen=True)
class Header:
    """The header of a file, which is read without its pixels.

    Args:
        bands: their number, without transparency.
        size: height and width in pixels, as the picture is looked at.
        is_byte: whether the pixels are 8-bit.
        names: of the bands, where the file has one for each.
        alpha: whether the file has a band of transparency besides.
        is_integer: whether the pixels are stored as whole numbers.
        units: of the bands, where the file names one for each.
    """

    bands: int
    size: tuple[int, int]
    is_byte: bool
    names: tuple[str, ...] | None = None
    alpha: bool = False
    is_integer: bool = True
    units: tuple[str, ...] | None = None


class Position(NamedTuple):
    """Where a file says that it lies: CRS and transform as rasterio has them, height and width."""

    crs: Any
    transform: Any
    size: tuple[int, int]


@dataclass
class Decoded:
    """The pixels of a file, and what the file says about them.

    Args:
        pixels: (C, H, W), without transparency.
        stored: the type of the pixels in the file.
        holes: (C, H, W) or (1, H, W) bool, where nothing is measured; None where all is.
        alpha: (1, H, W), the transparency, of which 0 is no measurement; None where there is none.
        names: of the bands, None for each that has no name.
        linear: scale and offset of each band, (C,) both, that make units of pixels.
        of_palette: whether the pixels are the colours of a palette.
        position: where the file says that it lies on the Earth.
    """

    pixels: np.ndarray
    stored: np.dtype
    holes: np.ndarray | None = None
    alpha: np.ndarray | None = None
    names: tuple[str | None, ...] = ()
    linear: tuple[np.ndarray, np.ndarray] | None = None
    of_palette: bool = False
    position: Position | None = None

    def turned(self, orientation: int) -> Decoded:
        """Return the picture as it is looked at, for an orientation of EXIF and TIFF (1 to 8)."""
        if orientation not in range(2, 9):
            return self
        return replace(
            self,
            pixels=_turn(self.pixels, orientation),
            holes=None if self.holes is None else _turn(self.holes, orientation),
            alpha=None if self.alpha is None else _turn(self.alpha, orientation),
        )

    def picked(self, rows: list[int]) -> Decoded:
        """Return some of the bands, in this order; that of transparency comes after the others."""
        if self.alpha is not None and len(self.pixels) in rows:
            whole = replace(
                self,
                pixels=np.concatenate([self.pixels, self.alpha]),
                alpha=None,
                names=(*self.names, None) if self.names else (),
                linear=None,
            )
            return whole.picked(rows)
        holes, linear = self.holes, self.linear
        if holes is not None and len(holes) > 1:
            rest = np.zeros_like(holes[:1])  # nothing is known of the transparency itself
            holes = np.concatenate([holes, rest])[rows] if max(rows) >= len(holes) else holes[rows]
        return replace(
            self,
            pixels=self.pixels[rows],
            holes=holes,
            names=tuple(self.names[row] for row in rows) if self.names else (),
            linear=None if linear is None else (linear[0][rows], linear[1][rows]),
        )

    def add_holes(self, holes: np.ndarray) -> None:
        """Add pixels without a measurement, (C, H, W) or (1, H, W) bool."""
        if holes.any():
            self.holes = holes if self.holes is None else self.holes | holes


def off_values(pixels: np.ndarray, values: Iterable[float]) -> np.ndarray:
    """Return measured pixels, of which none is one of some values any more.

    A file's scale and offset may bring a measured number onto a number that means "no measurement"
    in the numbers of the file: 1000 * 0.0001 - 0.1 is 0. Whoever gets the units could not tell the
    two apart, so such a pixel becomes the next number of float32.

    Args:
        pixels: (C, H, W), in units.
        values: that mean "no measurement" in the numbers of the file.

    Returns:
        (C, H, W) float32.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 is a hole
        moved = pixels.astype(np.float32)
    for value in values:
        one = np.float32(value)
        least = np.finfo(np.float32).tiny  # what is nearer to 0 is 0 to a GPU
        moved[moved == one] = np.nextafter(one, np.float32(np.inf)) if one else least
    return moved


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return height and width of a picture once it is turned upright."""
    return (size[1], size[0]) if orientation in (5, 6, 7, 8) else size


def _turn(x: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        x = x.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        x = x[..., ::-1, :]
    return x[..., ::-1] if orientation in (2, 3, 6, 7) else x


def check_size(
    path: Path, bands: int, size: tuple[int, ...], max_pixels: int, *, itemsize: int = 1
) -> None:
    """Refuse a picture that claims a size which is not worth any memory.

    Args:
        path: its file.
        bands: their number.
        size: height and width.
        max_pixels: height times width that is read at most.
        itemsize: bytes of a number.

    Raises:
        BadSampleError: saying how large it is, and what helps.
    """
    height, width = size
    if min(bands, height, width) < 0 or bands > _MAX_BANDS:
        raise BadSampleError(path, f"claims {bands} bands of {height} x {width}; {AS_COPIED}")
    if height * width > max_pixels:
        windows = "read windows of it with --data PairedScenes, "
        raise TooLargeError(
            path,
            f"is {height:,} x {width:,} pixels, more than max_pixels ({max_pixels:,}); "
            f"{windows if path.suffix.lower() in _SCENES else ''}cut it into tiles, or set "
            "--data.max_pixels",
        )
    check_bytes(path, bands * height * width * itemsize, max_pixels)


def check_bytes(path: Path, needed: int, max_pixels: int) -> None:
    """Refuse a picture, or a part of it that is read at once, that claims too many bytes.

    Raises:
        BadSampleError: saying how many, and what helps.
    """
    if needed >= _BYTES * max(max_pixels, MAX_PIXELS):
        raise BadSampleError(
            path,
            f"claims {needed / 1e9:,.1f} GB in memory; cut it into tiles or leave bands out, or "
            f"set --data.max_pixels {needed // _BYTES + 1}",
        )


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises for a file into a bad sample.

    Decoders of broken files raise nearly anything (`struct.error`, `TokenError`, `OverflowError`,
    `MemoryError`, ...), and none of it may end a run.

    Raises:
        BadSampleError: with the decoder's reason.
    """
    try:
        yield
    except DecurError:
        raise
    except (AssertionError, NameError, ImportError):
        raise  # faults of code
    except Exception as error:
        if lacks_memory(error):
            raise BadSampleError(
                path, "needs more memory than there is; cut it into tiles, or lower the workers"
            ) from error
        raise BadSampleError(path, unreadable(error)) from error


def unreadable(error: BaseException) -> str:
    """Return why a file cannot be read, in one line with the remedy."""
    if "cannot identify image file" in str(error):
        return f"is no picture or is cut short; {AS_COPIED}"
    return f"cannot be read ({reason_of(error)}); {AS_COPIED}"
