"""Arrays in files: NumPy, MATLAB, HDF5 and Zarr; nothing of them is unpickled or followed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import ZipFile, is_zipfile

import numpy as np

from decur.data.decoding import Decoded, Header, check_bytes, check_size
from decur.errors import BadSampleError, DataError, needing

EXTENSIONS = frozenset({".npy", ".npz", ".mat", ".h5", ".hdf5", ".zarr"})

_MOST_CHUNKS = 1_000_000  # whose reading takes minutes
_LONGEST_HEADER = 65_536  # bytes; NumPy itself reads 10,000
_NARROW = 16  # pixels; a picture of another shape that is this narrow is rather (H, W, C)


@dataclass
class StoredArray:
    """An array in a file, whose pixels have not been read yet.

    Args:
        shape: of the array.
        dtype: of its numbers.
        read: reads it whole.
        attributes: what the file says of it, by the conventions of NetCDF: `_FillValue`,
            `missing_value`, `scale_factor`, `add_offset`.
        chunks: shape of the parts that are read at once; None where there are none.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    chunks: tuple[int, ...] | None = None

    def numbers(self, key: str) -> list[float]:
        """Return the numbers of an attribute, none where it has none."""
        values = np.ravel(self.attributes.get(key, ()))
        return values.tolist() if values.dtype.kind in "iuf" else []

    @property
    def linear(self) -> tuple[float, float]:
        """Scale and offset that make units of numbers."""
        (scale,), (offset,) = (
            (self.numbers(key) or [usual])[:1]
            for key, usual in (("scale_factor", 1.0), ("add_offset", 0.0))
        )
        return scale, offset


def read_array(path: Path, bands: int | None, max_pixels: int, *, variable: str | None) -> Decoded:
    """Read an array as (C, H, W).

    Args:
        path: one of `EXTENSIONS`.
        bands: their number, which tells (H, W, C) from (C, H, W); None where it is not known.
        max_pixels: height times width that is read at most.
        variable: name of the array in a file of several; None takes the only one there is.

    Raises:
        BadSampleError: for a file that cannot be used; other errors are the library's.
        DataError: if that library is not installed.
    """
    with _opened(path, variable) as stored:
        last = _checked(path, stored, bands, max_pixels)
        array = stored.read()
    if array.ndim == 2:
        array = array[None]
    elif last:
        array = np.moveaxis(array, -1, 0)
    decoded = Decoded(array, array.dtype)
    for value in stored.numbers("_FillValue") + stored.numbers("missing_value"):
        decoded.add_holes(array == value)
    if stored.linear != (1, 0):
        scale, offset = (np.full(len(array), number) for number in stored.linear)
        decoded.linear = (scale, offset)
    return decoded


def array_header(path: Path, bands: int | None, max_pixels: int, *, variable: str | None) -> Header:
    """Return the header of an array.

    Raises:
        BadSampleError, DataError: as `read_array`.
    """
    with _opened(path, variable) as stored:
        last = _checked(path, stored, bands, max_pixels)
        shape = (1, *stored.shape) if len(stored.shape) == 2 else stored.shape
        c, h, w = (shape[2], *shape[:2]) if last else shape
        plain = stored.linear == (1, 0)
        is_byte = stored.dtype == np.uint8 and plain
        return Header(c, (h, w), is_byte, is_integer=stored.dtype.kind in "iub" and plain)


def _checked(path: Path, stored: StoredArray, bands: int | None, max_pixels: int) -> bool:
    """Return whether the bands come last, once nothing speaks against reading the array."""
    shape, itemsize = stored.shape, stored.dtype.itemsize
    if len(shape) not in (2, 3):
        raise BadSampleError(path, f"has shape {shape}; save it as (C, H, W) or (H, W)")
    if stored.dtype.kind not in "iufb":
        raise BadSampleError(path, f"has pixels of type {stored.dtype}; save real numbers")
    last = len(shape) == 3 and bands_last(path, (shape[0], shape[1], shape[2]), bands)
    count, size = (1, shape) if len(shape) == 2 else (shape[0], shape[1:])
    if last:
        count, size = shape[2], shape[:2]
    check_size(path, count, size, max_pixels, itemsize=itemsize)
    if stored.chunks is not None:
        check_bytes(path, prod(stored.chunks) * itemsize, max_pixels)
        parts = prod(-(-n // chunk) for n, chunk in zip(shape, stored.chunks, strict=True))
        if parts > _MOST_CHUNKS:
            raise BadSampleError(path, f"lies in {parts:,} chunks; write it with larger ones")
    return last


def bands_last(path: str | Path, shape: tuple[int, int, int], bands: int | None) -> bool:
    """Return whether an array is (H, W, C), which its number of bands tells, not its sizes.

    Where that number is not known or is none of the sides, an array is (C, H, W) unless it can
    hardly be.

    Args:
        path: of the array, or what else names it in a message.
        shape: of three sides.
        bands: their number, if it is known.

    Raises:
        BadSampleError: if both fit, or if it is not known and the array is rather (H, W, C).
    """
    c, h, w = shape
    if bands in (c, w):
        if c == w == bands:
            raise BadSampleError(
                path, f"has shape {shape}: {bands} bands come first or last; save it as (C, H, W)"
            )
        return c != bands
    square_last = c == h != w
    if h != w and (square_last or (w <= _NARROW and w < min(c, h))):
        raise BadSampleError(
            path,
            f"has shape {shape}, which looks like (H, W, C); name its bands in `modalities`, "
            "or save (C, H, W)",
        )
    return False


@contextmanager
def _opened(path: Path, variable: str | None) -> Iterator[StoredArray]:
    suffix = path.suffix.lower()
    if suffix == ".zarr":
        yield _zarr(path, variable)
        return
    if suffix in (".h5", ".hdf5") or (suffix == ".mat" and _is_hdf5(path)):
        with _hdf5(path, variable) as stored:
            yield stored
    elif suffix == ".mat":
        yield _matlab(path, variable)
    else:
        with open(path, "rb") as file:
            is_archive = suffix == ".npz" or file.read(2) == b"PK"
            if not is_archive:
                file.seek(0)
                shape, dtype = _numpy_header(path, file)
        if is_archive:
            yield _numpy_archive(path, variable)
            return
        yield StoredArray(shape, dtype, lambda: np.load(path, allow_pickle=False))


def _choose(path: Path, names: list[str], variable: str | None) -> str:
    """Return the name of the array to read."""
    if variable is not None and variable in names:
        return variable
    there = ", ".join(names[:8]) or "none"
    if variable is not None:
        raise BadSampleError(path, f"has no array {variable!r}; there is {there}")
    if not names:
        raise BadSampleError(
            path, "has no array of real numbers of two or three dimensions; save the picture as one"
        )
    if len(names) != 1:
        raise BadSampleError(
            path,
            f"has {len(names)} arrays of two or three dimensions ({there}); name one as "
            "`variable` of its modality",
        )
    return names[0]


def _numpy_header(path: Path, file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of an array in NumPy's format, without its numbers."""
    start = BytesIO(file.read(_LONGEST_HEADER))  # an archive's may claim to be gigabytes long
    major = np.lib.format.read_magic(start)[0]
    read = {1: np.lib.format.read_array_header_1_0}.get(major, np.lib.format.read_array_header_2_0)
    shape, _, dtype = read(start)
    if dtype.hasobject:
        raise BadSampleError(path, "holds Python objects, which are never opened; save numbers")
    return shape, dtype


def _numpy_archive(path: Path, variable: str | None) -> StoredArray:
    if not is_zipfile(path):
        raise ValueError("no zip archive")
    with ZipFile(path) as archive:
        members = {}
        for entry in archive.namelist():
            if entry.endswith(".npy"):
                with archive.open(entry) as file:
                    members[entry[:-4]] = _numpy_header(path, file)  # type: ignore[arg-type]
    pictures = [n for n, (shape, kind) in members.items() if _is_picture(shape, kind)]
    if len(members) == 1:
        pictures = list(members)  # says below what is wrong with it
    name = _choose(path, pictures, variable)

    def read() -> np.ndarray:
        with np.load(path, allow_pickle=False) as archive:
            array: np.ndarray = archive[name]
            return array

    return StoredArray(*members[name], read)


def _is_picture(shape: tuple[int, ...], kind: np.dtype) -> bool:
    return len(shape) in (2, 3) and kind.kind in "iufb" and min(shape) > 0 and max(shape) > 1


def _is_hdf5(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(520)
    return b"\x89HDF\r\n\x1a\n" in (start[:8], start[512:520])


def _matlab(path: Path, variable: str | None) -> StoredArray:
    from scipy.io import loadmat, whosmat

    kinds = {"logical": "uint8", "single": "float32", "double": "float64"}
    found = {
        name: (tuple(int(side) for side in shape), np.dtype(kinds.get(kind, kind)))
        for name, shape, kind in whosmat(path)
        if kind in kinds or kind.startswith(("int", "uint"))
    }
    name = _choose(path, [n for n, (shape, k) in found.items() if _is_picture(shape, k)], variable)

    def read() -> np.ndarray:
        array: np.ndarray = loadmat(path, variable_names=[name])[name]
        return array

    return StoredArray(*found[name], read)


@contextmanager
def _hdf5(path: Path, variable: str | None) -> Iterator[StoredArray]:
    with needing(f"reading {path}", "rgbd", DataError):
        import h5py
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}

        def keep(name: str, item: Any) -> None:  # links to other files are not visited
            if isinstance(item, h5py.Dataset) and _is_picture(item.shape or (), item.dtype):
                found[name] = item

        file.visititems(keep)
        dataset = found[_choose(path, list(found), variable and variable.strip("/"))]
        if dataset.external or dataset.is_virtual:
            raise BadSampleError(path, "keeps its pixels in other files; save them in this one")
        turn = "MATLAB_class" in dataset.attrs  # MATLAB stores the last dimension first
        shape, chunks = tuple(dataset.shape), dataset.chunks
        if turn:
            shape, chunks = shape[::-1], chunks and chunks[::-1]
        read = lambda: dataset[()].T if turn else dataset[()]  # noqa: E731
        yield StoredArray(shape, dataset.dtype, read, dict(dataset.attrs), chunks)


def _zarr(path: Path, variable: str | None) -> StoredArray:
    with needing(f"reading {path}", "eo", DataError):
        import zarr
    for metadata in (*path.rglob(".zarray"), *path.rglob("zarr.json"), *path.rglob(".zmetadata")):
        if "pickle" in json.dumps(json.loads(metadata.read_text())).lower():
            raise BadSampleError(path, "holds Python objects, which are never opened")
    opened = zarr.open(str(path), mode="r")
    if isinstance(opened, zarr.Array):
        array: Any = opened
    else:
        members = {n: m for n, m in opened.members(max_depth=None) if isinstance(m, zarr.Array)}
        pictures = [n for n, m in members.items() if _is_picture(m.shape, m.dtype)]
        array = members[_choose(path, pictures, variable and variable.strip("/"))]
    attributes = dict(array.attrs)
    if "_ARRAY_DIMENSIONS" in attributes and array.fill_value is not None:
        attributes.setdefault("_FillValue", array.fill_value)  # as xarray means it
    read = lambda: np.asarray(array[...])  # noqa: E731
    return StoredArray(tuple(array.shape), array.dtype, read, attributes, array.chunks)
