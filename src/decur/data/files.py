"""Picture files to tensors: rasters, pictures and arrays, with all that the files say of them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from decur.data import arrays, pictures, rasters
from decur.data.decoding import (
    AS_COPIED,
    MAX_PIXELS,
    Decoded,
    Header,
    Position,
    decoding,
    off_values,
    unreadable,
)
from decur.errors import BadSampleError, DataError
from decur.modality import Modality, plain_band

__all__ = ["EXTENSIONS", "MAX_PIXELS", "Header", "read_header", "read_image", "read_mask"]

EXTENSIONS = frozenset(rasters.DRIVERS) | pictures.EXTENSIONS | arrays.EXTENSIONS

# Floats beyond it are fill values: 1e38 and 9.97e36 of models, -3.4e38 of ESRI, -1.8e308 of R.
_NO_FLOAT = 1e30


def read_image(
    path: str | Path,
    bands: int | None = None,
    *,
    nodata: float | tuple[float, ...] | None = None,
    pick: Sequence[str | int] | None = None,
    variable: str | None = None,
    is_byte: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read the pixels of one file, upright, in the units that the file states.

    Palettes, CMYK and the like become RGB, 1 bit becomes 0 and 255. Scale and offset that the file
    states are applied. Where a file is transparent, has a mask, or a value for "no data", there is
    no measurement; nor is there where a float is beyond 1e30. Transparency is a band only where
    `bands` counts it. Pages of one size and kind are one picture of all their bands. An array is
    (H, W), (C, H, W), or (H, W, C) where `bands` tells so.

    Args:
        path: of one of `EXTENSIONS`.
        bands: number of bands the picture must have; None takes any.
        nodata: values of the file that mean "no measurement", besides NaN and the file's own.
        pick: the bands to take, in order, by name (as the file describes them) or number from 1;
            None for all.
        variable: name of the array in a file of several.
        is_byte: whether a picture of whole numbers must be 8-bit, or must not; None takes any.
        max_pixels: height times width that is read at most.

    Returns:
        (C, H, W): uint8 where the file is 8-bit, else float32. Pixels without a measurement are
        NaN (which makes an 8-bit picture that has any float32).

    Raises:
        BadSampleError: for a file that is missing, empty, cut short, too large, of other bands,
            without one measured pixel, or with infinite values.
        DataError: for an unknown extension, or if the reader is not installed.
    """
    return _read(path, bands, nodata, pick, variable, is_byte, max_pixels)[0]


def read_sensor(
    path: str | Path,
    modality: Modality,
    *,
    is_byte: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read the pixels of one file of a sensor, see `read_with_position`."""
    return read_with_position(path, modality, is_byte=is_byte, max_pixels=max_pixels)[0]


def read_with_position(
    path: str | Path,
    modality: Modality,
    *,
    is_byte: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> tuple[Tensor, Position | None]:
    """Read the pixels of one file of a sensor: its bands, its array, its nodata.

    The bands are taken by name or number where all names of the modality's bands are described in
    the file, or all are numbers of its bands; else the file's must be as many.

    Args:
        path: of one of `EXTENSIONS`.
        modality: the sensor.
        is_byte: whether a picture of whole numbers must be 8-bit, or must not; None takes any.
        max_pixels: height times width that is read at most.

    Returns:
        As `read_image`, before the modality's own scale and offset; and where the file says that
        it lies on the Earth, if it does.

    Raises:
        BadSampleError, DataError: as `read_image`; also for 16-bit pixels of an 8-bit sensor.
    """
    image, position = _read(
        path,
        None if modality.picks else modality.channels,
        modality.nodata,
        modality.picks or modality.bands,
        modality.variable,
        is_byte,
        max_pixels,
    )
    eight_bits = modality.scaling == "range" and modality.value_range == (0, 255)
    if eight_bits and image.is_floating_point() and not modality.converts:
        highest = float(image.nan_to_num(0).max())
        if highest > 255:
            raise BadSampleError(
                Path(path),
                f"has values up to {highest:g}, its modality {modality.name!r} ends at 255; "
                "convert the file, or set `value_range`",
            )
    return image, position


def read_mask(path: str | Path, *, empty: int = 255, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Read a picture of class indices; of a palette picture the indices, not the colours.

    Args:
        path: of one of `EXTENSIONS`.
        empty: what stands where the file says that it holds nothing.
        max_pixels: height times width that is read at most.

    Returns:
        (H, W) int64.

    Raises:
        BadSampleError: as `read_image`, but such a mask may be all 255; also for more than one
            band or fractions.
    """
    path = _existing(path)
    with decoding(path):
        decoded = _decode(path, 1, max_pixels, indices=True)
        decoded.linear = None
        pixels = decoded.pixels
        if len(pixels) != 1:
            raise BadSampleError(
                path,
                f"a mask has one band of class indices, this has {len(pixels)}; convert it, or "
                "give the colour of each class in classes.txt beside it",
            )
        if pixels.dtype.kind not in "iub":
            pixels = _to_tensor(path, decoded, None).nan_to_num(empty).numpy()
            if (pixels != pixels.round()).any():
                raise BadSampleError(
                    path, "a mask holds whole numbers, this has fractions; convert it"
                )
        mask = torch.from_numpy(pixels[0].astype(np.int64))
        for holes in (decoded.holes, None if decoded.alpha is None else decoded.alpha == 0):
            if holes is not None:
                mask[torch.from_numpy(holes[0].copy())] = empty
    return mask


def read_header(
    path: str | Path,
    bands: int | None = None,
    *,
    variable: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Header:
    """Read a file's number of bands and size without its pixels.

    Args:
        path: of one of `EXTENSIONS`.
        bands: their number where it is known, which tells an array (H, W, C) from (C, H, W).
        variable: name of the array in a file of several.
        max_pixels: height times width that is read at most.

    Raises:
        BadSampleError, DataError: as `read_image`.
    """
    path = _existing(path)
    with decoding(path):
        if path.suffix.lower() in pictures.EXTENSIONS:
            return pictures.picture_header(path, max_pixels)
        if path.suffix.lower() in arrays.EXTENSIONS:
            return arrays.array_header(path, bands, max_pixels, variable=variable)
        return rasters.raster_header(path, max_pixels)


def bands_taken(
    names: Sequence[str | None], count: int, wanted: Sequence[str | int]
) -> list[int] | None:
    """Return the rows of a file's bands that are wanted, in order; None where one is not there.

    Args:
        names: of the file's bands, as far as they are described.
        count: number of the file's bands.
        wanted: names, or numbers from 1.
    """
    known: dict[str, int] = {}
    for row, name in enumerate(names):
        for spelling in (
            plain_band(name or ""),
            plain_band(re.split(r"[\s,:;(]", name or "")[0]),
        ):
            known.setdefault(spelling, row)
    if all(isinstance(name, str) and plain_band(name) in known for name in wanted):
        return [known[plain_band(str(name))] for name in wanted]
    if all(str(name).isdecimal() and 1 <= int(name) <= count for name in wanted):
        return [int(name) - 1 for name in wanted]
    mixed = [
        known.get(plain_band(name))
        if isinstance(name, str)
        else name - 1
        if name <= count
        else None
        for name in wanted
    ]
    rows = [row for row in mixed if row is not None and row >= 0]
    return rows if len(rows) == len(wanted) else None


def check_bands(header: Header, modality: Modality) -> None:
    """Refuse a sensor whose files have other bands than its modality.

    Raises:
        DataError: naming both.
    """
    if modality.picks is None and modality.channels in (header.bands, header.bands + header.alpha):
        return
    wanted = modality.picks or modality.bands
    if bands_taken(header.names or (), header.bands, wanted) is None:
        there = f" ({', '.join(header.names)})" if header.names else ""
        raise DataError(
            f"modality {modality.name!r} is given {modality.channels} bands "
            f"({', '.join(map(str, wanted))}), its files have {header.bands}{there}; correct "
            "`bands`, which may name or number those to take, or leave modalities out to take all"
        )


def parts_of(path: str | Path) -> list[Path]:
    """Return all files that are read for a picture: itself, its mask and metadata, its chunks."""
    path = Path(path)
    if path.suffix.lower() == ".zarr":
        return sorted(file for file in path.rglob("*") if file.is_file())
    if path.suffix.lower() in arrays.EXTENSIONS:
        return [path]
    return [path, *rasters.companions(path)]


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
            raise BadSampleError(path, unreadable(error)) from error
    return np.concatenate(found)


def _read(
    path: str | Path,
    bands: int | None,
    nodata: float | tuple[float, ...] | None,
    pick: Sequence[str | int] | None,
    variable: str | None,
    is_byte: bool | None,
    max_pixels: int,
) -> tuple[Tensor, Position | None]:
    """Return what `read_image` does, and where the file says that it lies."""
    path = _existing(path)
    with decoding(path):
        decoded = _decode(path, bands, max_pixels, variable=variable)
        _check_depth(path, decoded.stored, is_byte)
        image = _to_tensor(path, _take(path, decoded, bands, pick), nodata)
    if image.is_floating_point() and image.flatten()[0].isnan() and image.isnan().all():
        raise BadSampleError(path, "has no measured pixel (all NaN or nodata); delete it")
    return image, decoded.position


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix.lower() not in EXTENSIONS | rasters.ENVI_DATA:
        raise DataError(
            f"{path}: cannot read this kind of file; use {', '.join(sorted(EXTENSIONS))}"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise BadSampleError(path, "no such file; restore it or remove its id") from error
    if size == 0:
        raise BadSampleError(path, f"is empty (0 bytes); {AS_COPIED}")
    return path


def _decode(
    path: Path,
    bands: int | None,
    max_pixels: int,
    *,
    variable: str | None = None,
    indices: bool = False,
) -> Decoded:
    suffix = path.suffix.lower()
    if suffix in pictures.EXTENSIONS:
        return pictures.read_picture(path, max_pixels, indices=indices)
    if suffix in arrays.EXTENSIONS:
        return arrays.read_array(path, bands, max_pixels, variable=variable)
    return rasters.read_raster(path, max_pixels, indices=indices)


def _check_depth(path: Path, stored: np.dtype, is_byte: bool | None) -> None:
    """Refuse whole numbers of another depth than others of the sensor."""
    if is_byte is None or stored.kind not in "iu" or (stored == np.uint8) == is_byte:
        return
    signed = "signed " if stored == np.int8 else ""
    raise BadSampleError(
        path,
        f"has {signed}{8 * stored.itemsize}-bit pixels, others of its sensor "
        f"{'8-bit' if is_byte else 'more bits'}; convert it, or put it into a folder of its own",
    )


def _take(
    path: Path, decoded: Decoded, bands: int | None, pick: Sequence[str | int] | None
) -> Decoded:
    """Return the bands that are wanted; transparency counts as the last where it must."""
    if bands == 1 and decoded.of_palette and (decoded.pixels == decoded.pixels[:1]).all():
        decoded = decoded.picked([0])  # grey by a palette of colours
    if bands == 3 and decoded.of_palette and len(decoded.pixels) == 1:
        decoded = decoded.picked([0, 0, 0])  # a palette of grey beside others of colours
    count = len(decoded.pixels)
    wanted = bands if bands is not None else len(pick or ())
    with_alpha = decoded.alpha is not None and wanted == count + 1
    if pick is not None:
        rows = bands_taken(decoded.names, count + with_alpha, pick)
        if rows is not None:
            return decoded if rows == list(range(count)) else decoded.picked(rows)
        if bands is None:
            missing = next(p for p in pick if bands_taken(decoded.names, count, [p]) is None)
            raise BadSampleError(
                path, f"has no band {missing!r}; it has {_named(decoded)}; correct `bands`"
            )
    if with_alpha:
        return decoded.picked(list(range(count + 1)))
    if bands is not None and count != bands:
        raise BadSampleError(
            path,
            f"has {_named(decoded)}, its modality {bands}; correct `bands`, which may name or "
            "number those to take, or the file",
        )
    return decoded


def _to_tensor(path: Path, decoded: Decoded, nodata: float | tuple[float, ...] | None) -> Tensor:
    """Return the pixels as uint8 or float32, NaN where nothing is measured."""
    pixels = decoded.pixels
    if pixels.size == 0:
        raise BadSampleError(path, f"has no pixels (shape {pixels.shape}); {AS_COPIED}")
    if pixels.dtype.kind not in "iufb":
        remedy = "save amplitudes or decibels" if pixels.dtype.kind == "c" else "save real numbers"
        raise BadSampleError(path, f"has pixels of type {pixels.dtype}; {remedy}")
    if decoded.alpha is not None:
        decoded.add_holes(decoded.alpha == 0)
    values = () if nodata is None else nodata if isinstance(nodata, tuple) else (nodata,)
    for value in values:
        decoded.add_holes(pixels == value)
    if pixels.dtype.kind == "f":
        _check_floats(path, decoded)
    if decoded.linear is not None:
        scale, offset = (values[:, None, None] for values in decoded.linear)
        pixels = off_values(pixels * scale + offset, values)  # (C, H, W)
    is_byte = pixels.dtype in (np.uint8, np.bool_) and decoded.holes is None
    with np.errstate(over="ignore", invalid="ignore"):  # what is beyond float32 is a hole
        image = torch.from_numpy(
            np.array(pixels, dtype=np.uint8 if is_byte else np.float32, order="C")
        )
    if decoded.holes is not None:
        holes = torch.from_numpy(np.ascontiguousarray(decoded.holes))
        image.masked_fill_(holes, torch.nan)
    return image


def _check_floats(path: Path, decoded: Decoded) -> None:
    """Count floats that are far too large as holes, and refuse infinite ones."""
    low, high = decoded.pixels.min(), decoded.pixels.max()
    if low >= -_NO_FLOAT and high <= _NO_FLOAT:  # false where one is NaN
        return
    size = np.abs(decoded.pixels)  # (C, H, W)
    decoded.add_holes((size > _NO_FLOAT) & np.isfinite(size))
    infinite = np.isinf(size)
    if decoded.holes is not None:
        infinite &= ~decoded.holes
    if infinite.any():
        raise BadSampleError(path, "has infinite values; write pixels without a measurement as NaN")


def _named(decoded: Decoded) -> str:
    """Return the number of bands, and their names where they have any, for a message."""
    count = len(decoded.pixels)
    names = [name for name in decoded.names if name]
    text = f"{count} band" if count == 1 else f"{count} bands"
    return f"{text} ({', '.join(names)})" if names else text
