"""What a device can do at best, measured on itself: the ground under every floor."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from decur.errors import ConfigError

# The largest matrix and buffer that are tried; more does not make either faster.
_SIDES = {"cpu": (256, 512, 1024), "cuda": (2048, 4096, 8192)}
_BUFFERS = {"cpu": (2**20, 2**23, 2**26), "cuda": (2**24, 2**27, 2**29)}


def open_device(name: str) -> torch.device:
    """A device by its name.

    Raises:
        ConfigError: if it is not there.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name!r} cannot be used ({reason})") from error


@dataclass(frozen=True)
class Rates:
    """What a device reaches in a number format.

    Args:
        matrix: floating-point operations a second of its best matrix product; a multiply-add is 2.
        copy: bytes a second of a copy from memory to memory, what is read and what is written.
        copies: `(bytes of a buffer, bytes a second)`, smallest first: small buffers stay in caches.
    """

    matrix: float
    copy: float
    copies: tuple[tuple[int, float], ...] = field(default=())

    def moving(self, size: int) -> float:
        """Bytes a second that a tensor of `size` bytes can be moved with, in a cache if it fits."""
        fits = [rate for buffer, rate in self.copies if size <= buffer]
        return max([self.copy, *fits])

    def floor(self, operations: int, moved: int, size: int | None = None) -> float:
        """Seconds below which no program can be.

        Args:
            operations: floating-point operations of matrix products.
            moved: bytes read and written.
            size: bytes of a typical tensor among them; None: all of them.
        """
        return max(operations / self.matrix, moved / self.moving(moved if size is None else size))


def measure_device(
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    seconds: float = 1.0,
    *,
    convolutions: bool = False,
) -> Rates:
    """Measure matrix products and copies, each at several sizes, and take the best.

    The best and not the median: what else a machine does can only add to a time, and a floor has
    to lie below all times. Products are as precise as the program asks for
    (`torch.set_float32_matmul_precision`).

    Args:
        device: what is measured.
        dtype: of the matrices.
        seconds: how long all of it takes, about.
        convolutions: products as precise as cuDNN's convolutions: TF32 for float32, unless it is
            told otherwise.

    Raises:
        ConfigError: if the device does not multiply matrices of this type.
    """
    device = torch.device(device)
    sides = _SIDES.get(device.type, _SIDES["cpu"])
    buffers = _BUFFERS.get(device.type, _BUFFERS["cpu"])
    share = seconds / (len(sides) + len(buffers))
    matrix = 0.0
    precision = torch.get_float32_matmul_precision()
    try:
        if convolutions and device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            torch.set_float32_matmul_precision("high")
        for side in sides:
            a, b = torch.randn(2, side, side, device=device).to(dtype)
            out = torch.empty_like(a)
            least = _least(lambda: torch.mm(a, b, out=out), device, share)  # noqa: B023
            matrix = max(matrix, 2 * side**3 / least)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{device} cannot multiply matrices of {dtype}: {reason}") from error
    finally:
        torch.set_float32_matmul_precision(precision)
    copies = []
    for size in buffers:
        source = torch.ones(size, dtype=torch.uint8, device=device)
        target = torch.zeros_like(source)
        least = _least(lambda: target.copy_(source), device, share)  # noqa: B023
        copies.append((size, 2 * size / least))
    return Rates(matrix, copies[-1][1], tuple(copies))


def measure_transfer(device: torch.device | str, size: int, seconds: float = 0.2) -> float:
    """Bytes a second from pinned memory to a device; infinite where there is no way to go.

    Args:
        device: where to.
        size: bytes that are moved at once.
        seconds: how long it takes, about.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return float("inf")
    source = torch.ones(size, dtype=torch.uint8).pin_memory()
    target = torch.empty(size, dtype=torch.uint8, device=device)
    return size / _least(lambda: target.copy_(source, non_blocking=True), device, seconds)


def wait(device: torch.device) -> None:
    """Let a device finish what it has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _least(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of several turns, three at least."""
    work()
    wait(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return min(times)
