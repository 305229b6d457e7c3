"""Settings of loading: batch size, reading processes, tolerance of bad samples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from decur.errors import SHARE, WORKERS, WorkerLostError, check_ranges

LESS_MEMORY = "lower loader.workers or loader.batch_size"


@dataclass
class LoaderSettings:
    """Batch size, reading processes, and tolerance of bad samples.

    Args:
        batch_size: Number of samples in a batch, over all processes together: the same
            configuration gives the same result on one device and on many.
        workers: Number of reading processes for each device; None: up to 8, of the cores that this
            process may use and that the devices of a host share, less one.
        max_bad: Share of the data set that may turn out unreadable before the run stops.
    """

    batch_size: int = 256
    workers: int | None = None
    max_bad: float = 0.01

    def __post_init__(self) -> None:
        batch = {"batch_size": (2, 1_000_000)}
        check_ranges(self, "loader.", **batch, workers=WORKERS, max_bad=SHARE)

    def processes(self, sharing: int = 1) -> int:
        """Return the number of reading processes, with the default filled in.

        Args:
            sharing: processes of this host that train, each with readers of its own.
        """
        # Not all cores of the machine: a container or a job of a cluster may have a few of them.
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        default = min(8, max(1, cores // sharing - 1))
        return default if self.workers is None else self.workers


@contextmanager
def reporting_lost_workers(remedy: str = LESS_MEMORY) -> Iterator[None]:
    """Tell in one line that a reading process has died.

    Args:
        remedy: what needs less memory.

    Raises:
        WorkerLostError: saying so, and what to lower.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, EOFError) as error:
        if (lost := lost_worker(error, remedy)) is None:
            raise
        raise lost from error


def lost_worker(error: BaseException, remedy: str = LESS_MEMORY) -> WorkerLostError | None:
    """Return what tells that a reading process has died; None for an error that does not mean it.

    torch raises a `RuntimeError` within any statement then. What a dead process was about to send
    ends in a broken connection.

    Args:
        error: that was raised while samples were read.
        remedy: what needs less memory.
    """
    text = " ".join(str(error).split())
    if isinstance(error, RuntimeError) and re.search(r"DataLoader worker \(pid", text) is None:
        return None
    signal = re.search(r"killed by signal: (.+?)\.", text)
    how = f"was killed ({signal[1]})" if signal else "ended"
    cause = "of shared memory (/dev/shm)" if "us error" in text else "of memory"
    return WorkerLostError(
        f"a process that reads samples {how}, perhaps for want {cause}; {remedy}, and give the "
        "same command again: what is saved is not done anew"
    )
