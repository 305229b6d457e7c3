"""Times, operations and memory of what runs on a device."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count, sdpa_flop_count

from decur.data.base import PairedDataset
from decur.errors import ConfigError, reason_of
from decur.objectives.base import Objective
from decur.pretrain.settings import PretrainSettings

MOST_ROWS = 10  # of a table that people read
Row = dict[str, Any]  # the figures of one measurement: a row of a table, and of the JSON


@dataclass(frozen=True)
class Pretraining:
    """A pretraining that is measured, or planned."""

    data: PairedDataset  # as training sees it
    objective: Objective
    settings: PretrainSettings
    device: torch.device


class NumberFormats(NamedTuple):
    """The number formats that one of Lightning's precisions uses."""

    precision: str  # Lightning's name
    products: torch.dtype  # in which convolutions and matrix products are computed
    parameters: torch.dtype  # of parameters, their gradients and the optimiser's state


_FORMATS = {
    "64": torch.float64,
    "32": torch.float32,
    "16": torch.float16,
    "bf16": torch.bfloat16,
    # Linear layers compute in float8, all the rest in the format of the parameters.
    "transformer-engine": torch.bfloat16,
    "transformer-engine-float16": torch.float16,
}


def formats_of(trainer: Mapping[str, Any]) -> NumberFormats:
    """Return the number formats of the precision among the options of Lightning's Trainer."""
    name = str(trainer.get("precision") or "32-true")
    short = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}
    name = short.get(name, name)  # Lightning takes short names, too
    products = _FORMATS[name.removesuffix("-mixed").removesuffix("-true")]
    parameters = torch.float32 if name.endswith("mixed") else products
    return NumberFormats(name, products, parameters)


def open_device(name: str) -> torch.device:
    """Return a device, which becomes the current one if it is a GPU.

    Raises:
        ConfigError: if the device is not there.
    """
    try:
        held = torch.zeros(1, device=name)
        device, _ = held.device, held.item()  # a device such as "meta" has no values
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device: {name!r} cannot be used ({reason_of(error)})") from error
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def make_row(name: str, pairs: int, times: Sequence[float], **more: Any) -> Row:
    """Return the figures of one measurement.

    Args:
        name: of what was measured.
        pairs: samples that one turn handles.
        times: seconds of each turn; the row has their median as "seconds", and their quartiles.
        more: "memory", the bytes at the peak; "operations", see `count`; "floor", the seconds that
            a device at its best needs for them; the "share" of a whole; and others.
    """
    low, seconds, high = np.quantile(times, (0.25, 0.5, 0.75)).tolist()
    row: Row = {"name": name, "seconds": seconds, "quartiles": [low, high]}
    row |= {"pairs_per_second": pairs / seconds if seconds else None}
    return {**row, "memory": None, "floor": None, "share": None, **more}


def measure(work: Callable[[], object], seconds: float) -> list[float]:
    """Call a function for some seconds, and return those of each call; a GPU is waited for."""
    # Timer looks for CUDA's compiler, and warns where it finds that without a GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

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
    """
    gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU, ProfilerActivity.CUDA][: 1 + gpu]
    if gpu:
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
    with profile(activities=kinds, profile_memory=True, acc_events=True) as seen:
        work()
    if trace is not None:
        seen.export_chrome_trace(trace)
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


def _attention_backward(gradient: Any, q: Any, k: Any, v: Any, *unused: Any, **others: Any) -> Any:
    return 2 * _products(q, k, v)


# PyTorch's counter leaves out attention on a CPU, counts the backward pass of attention as kernels
# compute it and not as the mathematics has it, and counts the weights' gradient of a grouped
# convolution as many times as there are groups.
_aten, _products = torch.ops.aten, cast(Callable[..., Any], sdpa_flop_count)
_FORMULAS: dict[Any, Callable[..., Any]] = {
    _aten.convolution_backward: _convolution_backward,
    _aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: _products(q, k, v),
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    _aten._scaled_dot_product_flash_attention_backward: _attention_backward,
    _aten._scaled_dot_product_efficient_attention_backward: _attention_backward,
    _aten._scaled_dot_product_cudnn_attention_backward: _attention_backward,
}
