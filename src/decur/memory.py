"""The memory of the machine, and what is refused because it would need more."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decur.errors import ConfigError

if TYPE_CHECKING:
    from decur.modality import Modality

# Where Linux says how much a container may take, in its version 2 and in version 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_SHARED = Path("/dev/shm")  # where reading processes leave batches for the one that trains
_AHEAD = 2  # batches that each reading process keeps there
_GB = 1e9

log = logging.getLogger(__name__)


def memory_of_machine() -> int | None:
    """Return the bytes that the machine, or the container, has; None where it does not say."""
    found = []
    with suppress(AttributeError, OSError, ValueError):  # Windows has no sysconf
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for limit in _LIMITS:
        with suppress(OSError, ValueError):  # another system, or "max"
            found.append(int(Path(limit).read_text()))
    return min(found, default=None)


def require_memory(needed: float, *, what: str, remedy: str) -> None:
    """Refuse what would need more memory than the machine has, before it is asked for.

    Args:
        needed: bytes, a lower bound.
        what: needs them, for the message.
        remedy: what to lower.

    Raises:
        ConfigError: with both numbers.
    """
    there = memory_of_machine()
    if there is not None and needed > there:
        raise ConfigError(
            f"{what}: needs {needed / _GB:,.1f} GB of memory at least, and the machine has "
            f"{there / _GB:,.1f} GB; {remedy}"
        )


def require_memory_for_batch(
    sensors: Iterable[Modality], batch: int, size: int | None, *, copies: int = 1, key: str = "size"
) -> None:
    """Refuse a batch whose pictures alone, as float32, do not fit into the machine's memory.

    Args:
        sensors: whose pictures a sample has; one of unknown size counts nothing.
        batch: samples that are on this machine together.
        size: height and width that pictures are resized to; None for their own.
        copies: of each picture that are held at a time.
        key: the option that sets `size`.

    Raises:
        ConfigError: naming the batch and what to lower.
    """
    shapes = [(m.channels, (size, size) if size else m.size or (0, 0)) for m in sensors]
    pixels = max((height * width for _, (height, width) in shapes), default=0)
    require_memory(
        copies * batch * sum(bands * height * width for bands, (height, width) in shapes) * 4,
        what=f"a batch of {batch:,} samples of {pixels:,} pixels",
        remedy=f"lower loader.batch_size or {key}",
    )


def tell_little_shared_memory(sensors: Iterable[Modality], batch: int, workers: int) -> None:
    """Warn where the batches of reading processes do not fit into the machine's shared memory.

    Containers have 64 MB of it unless they are told otherwise, and a process that finds none left
    is killed.

    Args:
        sensors: whose pictures a sample has, of known size; a byte a number at least.
        batch: samples of a batch.
        workers: processes that read, all on this machine.
    """
    if not workers or not _SHARED.is_dir():
        return
    sample = sum(m.channels * m.size[0] * m.size[1] for m in sensors if m.size)
    needed, there = _AHEAD * workers * batch * sample, shutil.disk_usage(_SHARED).free
    if needed > there:
        log.warning(
            "%s: batches of %d reading processes take %.2f GB at least, and %.2f GB are free; give "
            "the container more (docker run --shm-size=16g), or lower loader.workers",
            _SHARED,
            workers,
            needed / _GB,
            there / _GB,
        )


def require_memory_for_options(
    build: Callable[[], Any], *, name: str, options: Mapping[str, Any]
) -> None:
    """Refuse an encoder whose options make it larger than the machine's memory.

    It is built on shapes alone (PyTorch's "meta" device). What goes wrong there goes wrong once
    more, and is said, when it is built.

    Args:
        build: builds the encoder.
        name: of its architecture.
        options: that a person has given; without any its size is a known one.
    """
    import torch

    if not options:
        return
    try:
        with torch.device("meta"):
            tensors = build().state_dict().values()
    except Exception:
        return
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    require_memory(needed, what=f"encoder {name!r}", remedy="see encoder.options")
