"""Settings of loading: batch size, reading processes, tolerance of bad samples."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from decur.errors import SHARE, WORKERS, DataError, check_ranges


@dataclass
class LoaderSettings:
    """Batch size, reading processes, and tolerance of bad samples.

    Args:
        batch_size: samples in a batch, over all processes together: the same configuration gives
            the same result on one device and on many.
        workers: reading processes for each device; None: up to 8, of the cores that this process
            may use and that the devices of a host share, less one.
        max_bad: share of the data set that may turn out unreadable before the run stops.
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
def reporting_lost_workers(
    remedy: str = "lower loader.workers or loader.batch_size",
) -> Iterator[None]:
    """Tell in one line that a reading process has died, which torch raises within any statement.

    Args:
        remedy: what needs less memory.

    Raises:
        DataError: saying so, and what to lower.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        if re.search(r"DataLoader worker \(pid", text) is None:
            raise
        signal = re.search(r"killed by signal: (.+?)\.", text)
        how = f"was killed ({signal[1]})" if signal else "ended"
        cause = "of shared memory (/dev/shm)" if "us error" in text else "of memory"
        raise DataError(
            f"a process that reads samples {how}, perhaps for want {cause}; {remedy}, and give the "
            "same command again: it goes on from what is saved"
        ) from error
