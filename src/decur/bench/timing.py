"""Times with their spread, peak memory, and the row that a measurement makes of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from decur.bench.device import wait

LEAST = 5  # turns that are measured however long they take


@dataclass(frozen=True)
class Timing:
    """Seconds of some turns.

    Args:
        median: of them.
        low: their lower quartile.
        high: their upper quartile.
        turns: how many.
    """

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, times: Sequence[float]) -> Timing:
        """Median and quartiles of at least one time in seconds."""
        if len(times) == 1:
            return cls(times[0], times[0], times[0], 1)
        low, median, high = statistics.quantiles(times, n=4, method="inclusive")
        return cls(median, low, high, len(times))


@dataclass(frozen=True)
class Row:
    """What was measured of one thing, and what physics allows.

    Args:
        name: of the thing.
        pairs: samples in a turn.
        time: of a turn; None: nothing to time.
        memory: peak in bytes; None: not measured.
        operations: floating-point operations of a turn's matrix products, counted from shapes.
        moved: bytes that a turn has to read and write, counted from shapes.
        floor: seconds that the device needs for these at least; None: nothing to count.
        share: of the whole, in [0, 1]; None: no part of a whole.
        rate: pairs a second where they do not follow from the median, as for what workers prepare.
        about: further numbers by name.
    """

    name: str
    pairs: int
    time: Timing
    memory: int | None = None
    operations: int = 0
    moved: int = 0
    floor: float | None = None
    share: float | None = None
    rate: float | None = None
    about: Mapping[str, float] = field(default_factory=dict)

    @property
    def pairs_per_second(self) -> float | None:
        """Samples a second; None where the thing takes no time."""
        if self.rate is not None:
            return self.rate
        return self.pairs / self.time.median if self.time.median > 0 else None

    @property
    def ratio(self) -> float | None:
        """Time over floor: 1 is as fast as the device can be."""
        return self.time.median / self.floor if self.floor else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: times in seconds, sizes in bytes."""
        return {
            "name": self.name,
            "seconds": self.time.median,
            "quartiles": [self.time.low, self.time.high],
            "turns": self.time.turns,
            "pairs": self.pairs,
            "pairs_per_second": self.pairs_per_second,
            "memory": self.memory,
            "operations": self.operations,
            "moved": self.moved,
            "floor": self.floor,
            "ratio": self.ratio,
            "share": self.share,
            **self.about,
        }


def measure(work: Callable[[], object], device: torch.device, seconds: float) -> Timing:
    """Time turns, each until the device is done, after one to warm up.

    Args:
        work: one turn.
        device: that works.
        seconds: how long to go on; `LEAST` turns at least.
    """
    work()
    wait(device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        wait(device)
        times.append(time.perf_counter() - start)
    return Timing.of(times)


def peak_memory(work: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that one turn needs at its peak, beyond those that were there before.

    What torch's allocators hand out: on the CPU, where they keep no account, as the profiler sees
    it, so that neither what the allocator of the system keeps nor other threads disturb.

    Args:
        work: one turn; has to have run before, so that libraries have their workspaces.
        device: that works.
    """
    if device.type == "cuda":
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        work()
    return peak_of(seen)


def peak_of(seen: profile) -> int:
    """Peak of the CPU's tensors during a profile with `profile_memory`, in bytes.

    Beyond what was there when it began.
    """
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.device_type() == torch.autograd.DeviceType.CPU:
            held += event.nbytes()  # type: ignore[attr-defined]
            peak = max(peak, held)
    return peak
