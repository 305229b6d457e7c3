"""`verify`: whether packed data is still what was written."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.data import DataLoader, Dataset

from decur.data.packed.reading import PackedPairs
from decur.errors import DataError

_LISTED = 5  # damaged samples that are named


class _Damage(Dataset[list[str]]):
    def __init__(self, data: PackedPairs) -> None:
        self.data = data

    def __getitem__(self, chunk: int) -> list[str]:
        return list(self.data.damaged_samples(chunk))


def verify(
    data: PackedPairs,
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Read every sample and compare it with its checksum.

    Args:
        data: packed data.
        workers: reading processes; 0: this one.
        progress: called with the chunks done and all of them.

    Raises:
        DataError: naming the damaged samples and their files.
    """
    chunks = len(data.chunks)
    loader: DataLoader[list[str]] = DataLoader(
        _Damage(data),
        sampler=range(chunks),
        batch_size=None,
        num_workers=min(workers, chunks),
        generator=torch.Generator(),
    )
    damaged: list[str] = []
    for done, lines in enumerate(loader, 1):
        damaged += lines
        progress(done, chunks)
    if damaged:
        more = f"; and {len(damaged) - _LISTED} more" if len(damaged) > _LISTED else ""
        raise DataError(
            f"{len(damaged)} of {len(data)} samples are damaged: "
            + "; ".join(damaged[:_LISTED])
            + more
        )
