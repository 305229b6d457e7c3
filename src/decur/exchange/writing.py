"""What keeps files from being written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from decur.errors import ConfigError


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around what writes: tells in one line why it cannot.

    Args:
        out: what was asked for, file or folder.

    Raises:
        ConfigError: naming it and the reason.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:160]
        raise ConfigError(f"--out {out}: cannot be written ({reason}); choose another") from error
