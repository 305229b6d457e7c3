"""Rows of every process, in the order of ranks, with gradients that flow back to their owners.

With `torch.distributed` not initialised, or a single process, everything here is the identity.
"""

from __future__ import annotations

from datetime import timedelta
from functools import lru_cache

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import default_pg_timeout
from torch.distributed.nn.functional import all_gather  # its backward sums over the processes

# Where NCCL has waited too long it ends the process, without an error that could be told in a line.
# The hosts, which meet in each step, give up before it does.
_BEFORE_NCCL = default_pg_timeout - timedelta(minutes=1)


def world() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather_integers(values: list[int]) -> list[list[int]]:
    """Gather a few integers of each process, in the order of ranks, without asking a GPU."""
    _, size = world()
    if size == 1:
        return [values]
    return _gather_on_host(torch.tensor(values), size).tolist()


def gather_masks(masks: Tensor, counts: list[int]) -> Tensor:
    """Concatenate what the processes know of their samples, without asking a GPU.

    Args:
        masks: (n, M) bool of this process, on the CPU.
        counts: n of each process.

    Returns:
        (sum of counts, M) bool, on the CPU.
    """
    if len(counts) == 1:
        return masks
    rows = F.pad(masks.to(torch.uint8), (0, 0, 0, max(counts) - len(masks)))
    parts = _gather_on_host(rows, len(counts))  # (world, most, M)
    return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)]).bool()


def _gather_on_host(own: Tensor, size: int) -> Tensor:
    """Gather a tensor on the CPU that has the same shape everywhere: (world, ...)."""
    everyone = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(everyone, own, group=_host_group(dist.group.WORLD))
    return torch.stack(everyone)


@lru_cache(maxsize=1)
def _host_group(everyone: dist.ProcessGroup) -> dist.ProcessGroup:
    """Return all processes as a group that exchanges CPU tensors, which NCCL does not.

    What the host must know would otherwise have to come from the GPU, and wait for all its work.
    """
    if dist.get_backend(everyone) == "gloo":
        return everyone
    # all processes are here together
    group = dist.new_group(backend="gloo", timeout=_BEFORE_NCCL)
    assert isinstance(group, dist.ProcessGroup)
    return group


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows of all processes, which may hold different numbers of them.

    Args:
        rows: (n, ...) of this process.
        counts: number of rows of each process.

    Returns:
        (sum of counts, ...). The gradient of `rows` is the sum of what all processes send back.
    """
    if len(counts) == 1:
        return rows
    most = max(counts)
    if len(rows) < most:  # collectives need equal shapes; the filling is cut off again below
        rows = F.pad(rows, (0, 0) * (rows.ndim - 1) + (0, most - len(rows)))
    # The group by name: the default of all_gather is the one of when torch was imported.
    gathered = all_gather(rows, dist.group.WORLD)  # world x (most, ...)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


def with_sum_over_processes(shares: Tensor) -> Tensor:
    """Give shares of a loss the value of the whole, and the gradient that DDP expects.

    DDP averages gradients over the processes. The gradient of the whole is the sum of those of the
    shares, so each share is multiplied by the number of processes.

    Args:
        shares: what this process has computed of each loss term.

    Returns:
        Same shape; values are the sums over the processes, the same on each.
    """
    _, size = world()
    if size == 1:
        return shares
    whole = shares.detach().clone()
    dist.all_reduce(whole)
    scaled = size * shares
    return scaled + (whole - scaled).detach()
