"""One sample as bytes: its tensors in safetensors' layout, its id and a checksum."""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from decur.data.sample import Sample
from decur.errors import ConfigError, DataError

# CRC-32 of what follows it, length of the tensors before compression, 1 if they are compressed.
HEAD = struct.Struct("<IIB7x")

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
_LEVEL = 3  # of zstd: its default; higher ones cost much time and gain little on pictures


def encode(sample: Sample, compress: bool = False) -> bytes:
    """Return a sample as bytes.

    Args:
        sample: images and targets of any dtype that safetensors knows; absent ones are left out.
        compress: with zstd.

    Raises:
        ConfigError: if zstd is not installed.
    """
    tensors = {f"image/{name}": image for name, image in sample["images"].items()}
    tensors |= {f"target/{name}": value for name, value in sample.get("target", {}).items()}
    plain = save({k: x.contiguous() for k, x in tensors.items()}, metadata={"id": sample["id"]})
    body = bytes(zstd().compress(plain, asbytes=True)) if compress else plain
    rest = HEAD.pack(0, len(plain), compress)[4:]
    return struct.pack("<I", zlib.crc32(body, zlib.crc32(rest))) + rest + body


def matches(item: memoryview) -> bool:
    """Return whether the checksum of an item is right."""
    return len(item) > HEAD.size and HEAD.unpack_from(item)[0] == zlib.crc32(item[4:])


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
    _, length, compressed = HEAD.unpack_from(item.data)
    body = item[HEAD.size :]
    if compressed:
        # Arrow's buffer may not be written to, tensors may.
        body = np.array(zstd().decompress(body, length, asbytes=False), dtype=np.uint8)
    if len(body) != length:
        raise ValueError("its length is wrong")
    start = 8 + int.from_bytes(body[:8].tobytes(), "little")
    header: dict[str, Any] = json.loads(body[8:start].tobytes())
    sample: Sample = {"id": header.pop("__metadata__")["id"], "images": {}}
    values = torch.from_numpy(body[start:])
    for key, entry in header.items():
        first, last = entry["data_offsets"]
        tensor = values[first:last].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        kind, _, name = key.partition("/")
        if kind == "image":
            sample["images"][name] = tensor
        else:
            sample.setdefault("target", {})[name] = tensor
    return sample


@cache
def zstd() -> Any:
    """Return the zstd codec of Arrow.

    Raises:
        ConfigError: if it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise ConfigError("zstd needs pyarrow: pip install 'decur[pack]'") from error
    return pyarrow.Codec("zstd", compression_level=_LEVEL)


@cache
def litdata() -> Any:
    """Return the parts of litdata that are used: its writer and its downloaders.

    Raises:
        DataError: if it is not installed.
    """
    try:
        from litdata.streaming import downloader, writer
    except ImportError as error:
        raise DataError("packed data needs litdata: pip install 'decur[pack]'") from error
    return type("litdata", (), {"writer": writer, "downloader": downloader})
