"""95 % intervals of metrics, from leaving out one part of the test samples in turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from decur.transfer.tasks import Kept, Task
from decur.verdicts import LEVEL

log = logging.getLogger(__name__)

FEWEST = 3  # units, below which no spread can be told
FEW = 20  # units, below which an interval is roughly right and wide
BLOCKS = 200  # parts that are left out at most: of more units several are left out together


@dataclass
class Intervals:
    """95 % intervals of the metrics of a test part, and how they came about.

    Args:
        limits: `{metric: (low, high)}` of the metrics that have one.
        about: how they were computed, or why there is none, as a sentence.
        units: how many groups, or samples where there are no groups, they are over.
    """

    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    about: str = ""
    units: int = 0


def measure_intervals(
    task: Task, kept: Kept, groups: Sequence[str] | None = None, seed: int = 0
) -> Intervals:
    """Return 95 % intervals of a task's metrics, for other groups or samples of the same kind.

    One group is left out in turn, or one sample where there are no groups, and the spread of the
    metric over that (the jackknife) is widened by Student's t for so many units. Shares get
    Wilson's interval for as many independent samples as that spread stands for, so that it stays
    in [0, 1] and an accuracy of 1 still has a lower end; the interval of an R2 is of log(1 - R2),
    that of an error of its logarithm. `benchmarks/coverage.py` prints how often these intervals
    hold the truth.

    Args:
        task: whose metrics.
        kept: what it keeps of the test part.
        groups: of the test samples, or None. Samples of one group are not independent.
        seed: of the order in which more than 200 units are put together.

    Source: Efron and Tibshirani 1993, chapter 11 (jackknife); Wilson 1927; Korn and Graubard 1998
    (the effective number of samples).
    """
    measured = {key: kept[key] for key in task.measured}
    blocks, count = _blocks(len(next(iter(measured.values()))), groups, seed)
    unit = "sample" if groups is None else "group"
    if count < FEWEST:
        about = (
            f"the test part is {'a single' if count == 1 else count} {unit}{'s' * (count > 1)}, so "
            f"its metrics have no interval; {FEWEST} {unit}s are needed at least"
        )
        log.warning(about)
        return Intervals(about=about, units=count)
    whole = task.metrics(measured)
    left_out = [
        task.metrics({key: values[blocks != block] for key, values in measured.items()})
        for block in np.unique(blocks)
    ]
    limits = {}
    for name, value in whole.items():
        without = np.array([metrics[name] for metrics in left_out])
        if math.isfinite(value) and np.isfinite(without).all():
            limits[name] = interval(value, without, task.scales.get(name, "share"))
    about = f"95 % intervals by leaving out {unit}s of {count} in turn (jackknife, Student's t)."
    if lacking := [name for name in whole if name not in limits]:
        about += f" None for {', '.join(lacking)}, which is undefined on the test part or without "
        about += f"one of its {unit}s."
    return Intervals(limits, about, count)


def interval(value: float, without: NDArray[np.float64], scale: str) -> tuple[float, float]:
    """Return the 95 % interval of a metric.

    Args:
        value: of the whole test part.
        without: (units,) the metric without each unit.
        scale: "share" (in [0, 1]), "explained" (an R2), "positive" (an error) or "plain".
    """
    from scipy.stats import t

    units = len(without)
    quantile = float(t.ppf(1 - LEVEL / 2, units - 1))
    if scale == "share" and min(value, without.min()) >= 0 and max(value, without.max()) <= 1:
        return _wilson(value, _variance(value, without), units, quantile)
    if scale == "explained" and max(value, without.max()) < 1:
        middle = math.log1p(-value)
        half = quantile * math.sqrt(_variance(middle, np.log1p(-without)))
        return 1 - math.exp(middle + half), 1 - math.exp(middle - half)
    if scale == "positive" and min(value, without.min()) > 0:
        middle = math.log(value)
        half = quantile * math.sqrt(_variance(middle, np.log(without)))
        return math.exp(middle - half), math.exp(middle + half)
    half = quantile * math.sqrt(_variance(value, without))
    return value - half, value + half


def _variance(value: float, without: NDArray[np.float64]) -> float:
    """Return the jackknife's variance of a metric, about its value for the whole."""
    units = len(without)
    return float((units - 1) / units * ((without - value) ** 2).sum())


def _wilson(share: float, variance: float, units: int, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval for as many samples as a share's variance stands for."""
    # all alike, as all right: each unit counts as one sample
    samples = max(share * (1 - share) / variance, 1.0) if variance > 0 else float(units)
    z2 = quantile**2 / samples
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _blocks(count: int, groups: Sequence[str] | None, seed: int) -> tuple[NDArray[np.int64], int]:
    """Return the block of each sample that is left out together, and the number of units."""
    names = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(names.max()) + 1 if count else 0
    order = np.random.default_rng(seed).permutation(units)
    block = order % BLOCKS if units > BLOCKS else np.arange(units)
    return block[names], units
