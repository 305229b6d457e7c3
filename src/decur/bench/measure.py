"""Times, operations and memory of what runs on a device."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from decur.errors import ConfigError


class NumberFormats(NamedTuple):
    """The number formats that one of Lightning's precisions uses."""

    precision: str  # Lightning's name
    products: torch.dtype  # in which convolutions and matrix products are computed
    parameters: torch.dtype  # of parameters, their gradients and the optimiser's state


NUMBER_FORMATS = {
    "64-true": (torch.float64, torch.float64),
    "32-true": (torch.float32, torch.float32),
    "16-true": (torch.float16, torch.float16),
    "bf16-true": (torch.bfloat16, torch.bfloat16),
    "16-mixed": (torch.float16, torch.float32),
    "bf16-mixed": (torch.bfloat16, torch.float32),
    # Linear layers compute in float8, all the rest in the format of the parameters.
    "transformer-engine": (torch.bfloat16, torch.bfloat16),
    "transformer-engine-float16": (torch.float16, torch.float16),
}
_SHORT = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def formats_of(trainer: Mapping[str, Any]) -> NumberFormats:
    """Return the number formats of the precision among the options of Lightning's Trainer."""
    given = str(trainer.get("precision") or "32-true")
    name = _SHORT.get(given, given)
    return NumberFormats(name, *NUMBER_FORMATS[name])


def open_device(name: str) -> torch.device:
    """Return a device, which becomes the current one if it is a GPU.

    Raises:
        ConfigError: if the device is not there.
    """
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device: {name!r} cannot be used ({reason})") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def wait(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Row:
    """A measurement of one thing: a row of a table."""

    name: str
    pairs: int  # samples that one turn handles
    times: Sequence[float]  # seconds of each turn
    memory: int | None = None  # bytes at the peak; None: not measured
    operations: int = 0  # of a turn, see `count`
    floor: float | None = None  # seconds that a device at its best needs for these operations
    share: float | None = None  # of a whole, in [0, 1]; None: no part of a whole
    rate: float | None = None  # pairs a second, where they do not follow from the median
    about: Mapping[str, float] = field(default_factory=dict)  # further numbers by name

    @property
    def seconds(self) -> float:
        """The median of the times."""
        return statistics.median(self.times)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper quartile of the times."""
        low, high = np.quantile(self.times, (0.25, 0.75))
        return float(low), float(high)

    @property
    def pairs_per_second(self) -> float | None:
        """Samples a second; None where the thing takes no time."""
        return self.rate or (self.pairs / self.seconds if self.seconds > 0 else None)

    @property
    def ratio(self) -> float | None:
        """The time over the floor: 1 is as fast as the device can be."""
        return self.seconds / self.floor if self.floor else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON: times in seconds, sizes in bytes."""
        computed = ("seconds", "quartiles", "pairs_per_second", "ratio")
        kept = ("name", "pairs", "memory", "operations", "floor", "share")
        values = {key: getattr(self, key) for key in (*kept, *computed)}
        return {**values, "turns": len(self.times), **self.about}


def measure(work: Callable[[], object], seconds: float) -> list[float]:
    """Call a function for some seconds, and return those of each call; a GPU is waited for."""
    from torch.utils.benchmark import Timer  # looks for CUDA's compiler, and says what it finds

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.blocked_autorange(min_run_time=seconds).times


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Return how many floating-point operations a second a device's best matrix product reaches.

    A GPU multiplies float32 in TF32 where torch lets convolutions do so.
    """
    sides = (2048, 4096, 8192) if device.type == "cuda" else (256, 512, 1024)
    precision, best = torch.get_float32_matmul_precision(), 0.0
    if torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")
    for side in sides:
        a, b = torch.randn(2, side, side, device=device).to(dtype)
        times = measure(partial(torch.mm, a, b), seconds / len(sides))
        best = max(best, 2 * side**3 / min(times))
    torch.set_float32_matmul_precision(precision)
    return best


def peak_memory(work: Callable[[], object], device: torch.device, trace: str | None = None) -> int:
    """Return the bytes of tensors that a call needs at its peak, beyond those before it.

    Args:
        work: should have been called before, so that libraries have their workspaces.
        device: that computes.
        trace: JSON file for a trace of the call, for Perfetto or chrome://tracing.

    Raises:
        ConfigError: if the trace cannot be written.
    """
    gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + gpu]
    if gpu:
        wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with profile(activities=kinds, profile_memory=True, acc_events=True) as seen:
        work()
        wait(device)
    if trace is not None:
        try:
            seen.export_chrome_trace(trace)
        except (OSError, RuntimeError) as error:
            raise ConfigError(f"--profile {trace}: cannot be written ({error})") from error
    if gpu:
        return torch.cuda.max_memory_allocated(device) - before
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    events: list[Any] = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes: list[int] = [e.nbytes() for e in sorted(events, key=lambda event: event.start_ns())]
    return max(0, 0, *itertools.accumulate(sizes))


def counter() -> FlopCounterMode:
    """Return a context that counts floating-point operations, a multiply-add as two."""
    return FlopCounterMode(display=False, custom_mapping=_FORMULAS)


def count(work: Callable[[], object]) -> int:
    """Count the operations of matrix products, convolutions and attention in a call."""
    with counter() as counted:
        work()
    return int(counted.get_total_flops())


def _convolution_backward(grad: Any, x: Any, weight: Any, *more: Any, **others: Any) -> Any:
    transposed, wanted = more[4], more[7]  # aten's arguments "transposed" and "output_mask"
    return conv_flop_count(x, weight, grad, transposed=transposed) * sum(wanted[:2])


# PyTorch's counter leaves out attention on a CPU, counts the backward pass of attention as kernels
# compute it and not as the mathematics has it, and counts the weights' gradient of a grouped
# convolution as many times as there are groups.
_products: Callable[..., Any] = sdpa_flop_count
_FORMULAS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.convolution_backward: _convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *unused, **others: _products(q, k, v)
    ),
}
for _kernel in (
    "flash_attention",
    "flash_attention_for_cpu",
    "efficient_attention",
    "cudnn_attention",
):
    _FORMULAS[getattr(torch.ops.aten, f"_scaled_dot_product_{_kernel}_backward")] = (
        lambda grad, q, k, v, *unused, **others: 2 * _products(q, k, v)
    )
