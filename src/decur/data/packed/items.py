"""One sample as bytes: its tensors in safetensors' layout, its id and a checksum."""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from decur.data.grid import Grid
from decur.data.sample import Sample
from decur.errors import DataError, needing

# Checksum of what follows it, length of the tensors before compression, 1 if they are compressed,
# kind of the checksum: CRC-32 (of version 0.1), or CRC-32C, which processors compute, 20 times as
# fast.
HEAD = struct.Struct("<IIBB6x")
_CRC32, _CRC32C = 0, 1

_DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "BOOL": torch.bool,
}
_NARROW = (torch.uint8, torch.int8, torch.int16, torch.int32)  # in which masks are stored
_ABOUT = "decur"  # key of an item's metadata, where there is more to say than the id
_NARROWED = "int64"  # the targets that are read as int64 again
_DIFFERENCES = "differences"  # the images that are stored as their pixels' differences
_LEVEL = 3  # level of zstd: its default; higher ones cost much time and gain little


def encode(sample: Sample, compress: bool = False) -> bytes:
    """Return a sample as bytes.

    Args:
        sample: images and targets of any dtype that safetensors knows; absent ones are left out.
        compress: with zstd; of pictures of 8 bits the differences of pixels, where that is smaller.

    Raises:
        ConfigError: if zstd is not installed.
    """
    tensors = {f"image/{name}": image for name, image in sample["images"].items()}
    targets = sample.get("target", {})
    narrow = {name: found for name, x in targets.items() if (found := _narrowed(x)) is not None}
    tensors |= {f"target/{name}": value for name, value in {**targets, **narrow}.items()}
    about: dict[str, Any] = {"id": sample["id"]}
    if narrow:
        about[_NARROWED] = list(narrow)
    if "place" in sample:
        about["place"] = sample["place"].to_dict()
    body = plain = _plain(tensors, about)
    if compress:
        body = _zstd_of(plain)
        pictures = {k: _differences(x) for k, x in tensors.items() if _is_picture(k, x)}
        if pictures:  # photographs halve so; noise does not
            other = _plain({**tensors, **pictures}, {**about, _DIFFERENCES: list(pictures)})
            if len(smaller := _zstd_of(other)) < len(body):
                plain, body = other, smaller
    checked = HEAD.pack(0, len(plain), compress, _CRC32C)[4:] + body
    return struct.pack("<I", crc32c()(checked)) + checked


def _plain(tensors: dict[str, Tensor], about: dict[str, Any]) -> bytes:
    # one key: safetensors writes several in an order that changes from time to time
    metadata = {_ABOUT: json.dumps(about)} if len(about) > 1 else about
    return save({k: x.contiguous() for k, x in tensors.items()}, metadata=metadata)


def _zstd_of(plain: bytes) -> bytes:
    return bytes(zstd().compress(plain, asbytes=True))


def _is_picture(key: str, tensor: Tensor) -> bool:
    return key.startswith("image/") and tensor.dtype == torch.uint8 and tensor.ndim == 3


def _differences(image: Tensor) -> Tensor:
    """Return what pixels differ from those to the left and above, modulo 256: (C, H, W) uint8."""
    across = np.diff(image.numpy(), axis=-1, prepend=np.uint8(0))
    return torch.from_numpy(np.diff(across, axis=-2, prepend=np.uint8(0)))


def _summed(differences: Tensor) -> Tensor:
    """Return the picture of its `_differences`."""
    down = np.cumsum(differences.numpy(), axis=-2, dtype=np.uint8)
    return torch.from_numpy(np.cumsum(down, axis=-1, dtype=np.uint8))


def matches(item: np.ndarray) -> bool:
    """Return whether the checksum of an item is right: (bytes,) uint8.

    Raises:
        ConfigError: if what computes it is not installed.
    """
    if len(item) <= HEAD.size:
        return False
    stored, _, _, kind = HEAD.unpack_from(item.data)
    if kind == _CRC32C:
        return bool(stored == crc32c()(item[4:]))
    return kind == _CRC32 and bool(stored == zlib.crc32(item[4:].data))


def decode(item: np.ndarray) -> Sample:
    """Return the sample of an item; its tensors share memory with one that is not compressed.

    safetensors' own function copies every tensor twice, which halves the speed of reading: the
    layout (length, JSON, bytes) is read here.

    Args:
        item: (bytes,) uint8, writable.

    Raises:
        ValueError: if this is no item; nothing of it is executed in any case.
    """
    if len(item) <= HEAD.size:
        raise ValueError("it is too short")
    _, length, compressed, _ = HEAD.unpack_from(item.data)
    body = item[HEAD.size :]
    if compressed:
        # Arrow's buffer may not be written to, tensors may.
        body = np.array(zstd().decompress(body, length, asbytes=False), dtype=np.uint8)
    if len(body) != length:
        raise ValueError("its length is wrong")
    start = 8 + int.from_bytes(body[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(body[8:start].tobytes())
    about = header.pop("__metadata__")
    about = json.loads(about[_ABOUT]) if _ABOUT in about else about
    sample: Sample = {"id": about["id"], "images": {}}
    if "place" in about:
        sample["place"] = Grid.from_dict(about["place"])
    narrowed, differences = about.get(_NARROWED, ()), about.get(_DIFFERENCES, ())
    values = torch.from_numpy(body[start:])
    for key, entry in header.items():
        first, last = entry["data_offsets"]
        tensor = values[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        kind, _, name = key.partition("/")
        if kind == "image":
            sample["images"][name] = _summed(tensor) if key in differences else tensor
        else:
            found = tensor.long() if name in narrowed else tensor
            sample.setdefault("target", {})[name] = found
    return sample


def _narrowed(target: Tensor) -> Tensor | None:
    """Return a mask in the smallest type that holds it; None where it stays as it is."""
    if target.dtype != torch.int64 or not target.ndim or not target.numel():
        return None
    low, high = (int(x) for x in target.aminmax())
    for dtype in _NARROW:
        limits = torch.iinfo(dtype)
        if limits.min <= low and high <= limits.max:
            return target.to(dtype)
    return None


@cache
def zstd() -> Any:
    """Return the zstd codec of Arrow.

    Raises:
        ConfigError: if it is not installed.
    """
    with needing("zstd", "pack"):
        import pyarrow
    return pyarrow.Codec("zstd", compression_level=_LEVEL)


@cache
def crc32c() -> Callable[[bytes | np.ndarray], int]:
    """Return the function that computes CRC-32C.

    Raises:
        ConfigError: if it is not installed.
    """
    with needing("packed data", "pack"):
        import google_crc32c
    compute: Callable[[bytes | np.ndarray], int] = google_crc32c.value
    return compute


@cache
def litdata() -> Any:
    """Return the parts of litdata that are used: its writer and its downloaders.

    Raises:
        DataError: if it is not installed.
    """
    with needing("packed data", "pack", DataError):
        from litdata.streaming import downloader, writer
    return type("litdata", (), {"writer": writer, "downloader": downloader})
