"""The memory of the machine, and what is refused because it would need more."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from decur.errors import ConfigError

# Where Linux says how much a container may take, in its version 2 and in version 1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_GB = 1e9


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
