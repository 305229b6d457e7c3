"""Runs of several processes that end, with their reason, when one of them does."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import lightning as L
from torch.distributed import DistError

from decur.errors import ProcessLostError

# How gloo, NCCL and the store say that the other end is gone, or silent for too long.
_LOST = re.compile(
    r"gloo|NCCL|connection (was )?(closed|reset|refused)|broken pipe|timed out|remote process",
    re.IGNORECASE,
)


@contextmanager
def reporting_lost_processes(trainer: L.Trainer) -> Iterator[None]:
    """Turn what a collective raises when another process is gone into one line.

    Args:
        trainer: of the run.

    Raises:
        ProcessLostError: naming this process, which is not the one that died.
    """
    try:
        yield
    except (RuntimeError, ConnectionError) as error:
        reason = " ".join(str(error).split())
        lost = isinstance(error, DistError | ConnectionError) or _LOST.search(reason)
        if trainer.world_size == 1 or not lost:
            raise
        raise ProcessLostError(
            f"process {trainer.global_rank} of {trainer.world_size} lost another one, which died "
            f"or cannot be reached ({reason[:200]}); its own last words may stand above; the same "
            "command goes on from the last checkpoint"
        ) from error
