"""95 % intervals of the metrics of a test part, from leaving out a part of it in turn."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context

from decur.errors import enumerated
from decur.transfer.tasks import Kept, Task
from decur.verdicts import LEVEL

log = logging.getLogger(__name__)

Float = NDArray[np.float64]

# Units, below which no spread can be told, of a class as well. With three samples or groups that
# show the rarest class, intervals of balanced accuracy, mIoU and macro mAP held the truth in 94 %
# and more of simulated test parts (30 to 1,000 samples, 5 to 100 groups, 2 to 10 classes, scores
# of 0.5 to 0.98), with a single one in 86 % and more; `benchmarks/coverage.py` simulates it anew.
FEWEST_UNITS = 3
MOST_NAMED = 3  # classes, in the reason why there is no interval
DIGITS = 12  # of a share: what sums err by would be taken for a spread where all are right
BLOCKS = 200  # parts that are left out at most: of more units several are left out together


@dataclass
class Intervals:
    """The 95 % intervals of the metrics of a test part, and how they came about.

    Args:
        limits: `{metric: (low, high)}` of the metrics that have one.
        about: how they were computed, or why there is none, as a sentence.
        units: how many groups, or samples where there are no groups, they are over.
    """

    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    about: str = ""
    units: int = 0


def measure_intervals(
    task: Task,
    kept: Kept,
    groups: Sequence[str] | None = None,
    seed: int = 0,
    never_shown: Collection[str] = (),
) -> Intervals:
    """Return 95 % intervals of a task's metrics, for other groups or samples of the same kind.

    One group is left out in turn, or one sample where there are no groups, and the spread of the
    metric over that (the jackknife) is widened by Student's t for so many units. Groups that differ
    in size count as fewer, see `effective`. Shares get Wilson's interval for as many independent
    samples as that spread stands for, so that it stays in [0, 1] and an accuracy of 1 still has a
    lower end; the interval of an R2 is of log(1 - R2), that of an error of its logarithm.

    Of a mean over classes the jackknife sees no spread where the few samples of a rare class are
    all right. So each class has an interval of its own, for as many units as show it, and the
    distances of the classes' ends from their scores add up as independent errors do (MOVER); the
    interval of the mean is the jackknife's and that one together. There is none where fewer than
    three units show a class. `benchmarks/coverage.py` prints how often all of them hold the truth.

    Args:
        task: whose metrics.
        kept: what it keeps of the test part.
        groups: of the test samples, or None. Samples of one group are not independent.
        seed: of the order in which more than 200 units are put together.
        never_shown: classes that no labelled sample of the data shows, which other test parts will
            not show, either.

    Source: Efron and Tibshirani 1993, chapter 11 (jackknife); Wilson 1927; Korn and Graubard 1998
    (the effective number of samples); Zou and Donner 2008 (MOVER).
    """
    measured = {key: kept[key] for key in task.measured}
    units, blocks = _units(len(next(iter(measured.values()))), groups, seed)
    count, unit = len(blocks), "sample" if groups is None else "group"
    if count < FEWEST_UNITS:
        about = (
            f"the test part is {'a single' if count == 1 else count} {unit}{'s' * (count > 1)}, so "
            f"its metrics have no interval; {FEWEST_UNITS} {unit}s are needed at least"
        )
        log.warning(about)
        return Intervals(about=about, units=count)
    freedom = effective(np.bincount(blocks[units])) - 1
    whole, of_classes = task.metrics(measured), _class_scores(task, measured)
    left_out: list[dict[str, float]] = []
    classes_left_out: list[dict[str, Float]] = []
    # what has been looked at once is not looked at again for each unit that is left out
    with config_context(assume_finite=True, skip_parameter_validation=True):
        for block in np.unique(blocks):
            part = {key: values[blocks[units] != block] for key, values in measured.items()}
            left_out.append(task.metrics(part))
            classes_left_out.append(_class_scores(task, part))
    shown = _units_that_show(task, measured, units)  # (C,)
    possible = ~np.isin(task.classes, list(never_shown))
    limits, rare = {}, {}
    for name, value in whole.items():
        without = np.array([metrics[name] for metrics in left_out])
        if not (math.isfinite(value) and np.isfinite(without).all()):
            continue
        limits[name] = interval(value, without, task.scales.get(name, "share"), freedom)
        if (each := of_classes.get(name)) is None:
            continue
        there = np.isfinite(each)
        if (few := (there | possible) & (shown < FEWEST_UNITS)).any():
            rare[name] = few
            del limits[name]
            continue
        each_without = np.array([scores[name] for scores in classes_left_out])  # (blocks, C)
        own = _interval_of_mean(each[there], each_without[:, there], shown[there])
        limits[name] = min(limits[name][0], own[0]), max(limits[name][1], own[1])
    about = f"95 % intervals by leaving out {unit}s of {count} in turn (jackknife, Student's t)."
    if rare:
        few = np.logical_or.reduce(list(rare.values()))
        about += (
            f" None for {enumerated(rare)}, a mean over classes each of which {FEWEST_UNITS} "
            f"{unit}s of the test part have to show: {_counts(task, shown, few)}."
        )
    if lacking := [name for name in whole if name not in limits and name not in rare]:
        about += f" None for {', '.join(lacking)}, which is undefined on the test part or without "
        about += f"one of its {unit}s."
    return Intervals(limits, about, count)


def _counts(task: Task, shown: NDArray[np.int64], few: NDArray[np.bool_]) -> str:
    """Return of some classes how many units show them, in words."""
    names = [f"{shown[i]} show {task.classes[i]!r}" for i in np.flatnonzero(few)]
    more = [f"fewer than {FEWEST_UNITS} each of {len(names) - MOST_NAMED} more classes"]
    return enumerated([*names[:MOST_NAMED], *(more if len(names) > MOST_NAMED else [])])


def _class_scores(task: Task, kept: Kept) -> dict[str, Float]:
    """Return the (C,) scores of the classes that each mean over classes is of."""
    if not task.averages:
        return {}
    rows = list(task.by_class(kept).values())
    return {
        metric: np.array([row[score] for row in rows])
        for metric, score in task.averages.items()
        if rows and all(score in row for row in rows)  # a kind of one's own may have others
    }


def _units_that_show(task: Task, kept: Kept, units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return how many units show each class: (C,)."""
    shows = task.shows(kept)  # (N, C)
    found = np.zeros((units.max() + 1, shows.shape[1]), bool)
    np.logical_or.at(found, units, shows)
    return np.asarray(found.sum(axis=0))


def _interval_of_mean(
    values: Float, without: Float, units: NDArray[np.int64]
) -> tuple[float, float]:
    """Return the interval of a mean over classes that are independent of each other.

    Args:
        values: (C,) of the classes.
        without: (blocks, C) the same without each block.
        units: (C,) how many show each class.
    """
    from scipy.stats import t

    # a class has no score where all that shows it is left out together: it counts as 0
    values, without = values.round(DIGITS), without.round(DIGITS)
    ends = np.array(
        [
            _wilson(value, _variance(value, rest, count), count, t.ppf(1 - LEVEL / 2, count - 1))
            for value, rest, count in zip(values, np.nan_to_num(without.T), units, strict=True)
        ]
    )
    low, high = np.sqrt(((ends - values[:, None]) ** 2).sum(axis=0)) / len(values)
    return max(0.0, values.mean() - low), min(1.0, values.mean() + high)


def effective(sizes: NDArray[np.int64]) -> float:
    """Return how many units of one size tell as much as some that differ in size; 2 at least.

    It is (sum n)^2 / sum n^2 of their sizes n, as a few large groups make up most of a metric and
    of its spread. With sizes that are lognormal (deviation 1.5), intervals of accuracy and R2 of 3
    to 20 groups held the truth in 89 to 94 % of simulated test parts by the number of groups, and
    hold it in 95 to 99 % by this one.

    Source: Kish 1965, Survey Sampling; Carter, Schnepel and Steigerwald 2017 (effective number of
    clusters).
    """
    return max(2.0, float(sizes.sum() ** 2 / (sizes**2).sum()))


def interval(
    value: float, without: Float, scale: str, freedom: float | None = None
) -> tuple[float, float]:
    """Return the 95 % interval of a metric.

    Args:
        value: of the whole test part.
        without: (units,) the metric without each unit.
        scale: "share" (in [0, 1]), "explained" (an R2), "positive" (an error) or "plain".
        freedom: degrees of freedom of the spread; None: units less one.
    """
    from scipy.stats import t

    units = len(without)
    if scale == "share":
        value, without = round(value, DIGITS), without.round(DIGITS)
    quantile = float(t.ppf(1 - LEVEL / 2, units - 1 if freedom is None else freedom))
    if scale == "share" and min(value, without.min()) >= 0 and max(value, without.max()) <= 1:
        return _wilson(value, _variance(value, without, units), units, quantile)
    if scale == "explained" and max(value, without.max()) < 1:
        middle = math.log1p(-value)
        half = quantile * math.sqrt(_variance(middle, np.log1p(-without), units))
        return 1 - math.exp(middle + half), 1 - math.exp(middle - half)
    if scale == "positive" and min(value, without.min()) > 0:
        middle = math.log(value)
        half = quantile * math.sqrt(_variance(middle, np.log(without), units))
        return math.exp(middle - half), math.exp(middle + half)
    half = quantile * math.sqrt(_variance(value, without, units))
    return value - half, value + half


def _variance(value: float, without: Float, units: int) -> float:
    """Return the jackknife's variance of a metric, about its value for the whole.

    Args:
        value: of the whole test part.
        without: the metric without each unit.
        units: how many of them tell anything of the metric.
    """
    return float((units - 1) / units * ((without - value) ** 2).sum())


def _wilson(share: float, variance: float, units: int, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval for as many samples as a share's variance stands for."""
    # all alike, as all right: each unit counts as one sample
    samples = max(share * (1 - share) / variance, 1.0) if variance > 0 else float(units)
    z2 = quantile**2 / samples
    middle = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    return max(0.0, middle - half), min(1.0, middle + half)


def _units(
    count: int, groups: Sequence[str] | None, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the unit of each sample, (N,), and the block that each unit is left out with."""
    names = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = int(names.max()) + 1 if count else 0
    order = np.random.default_rng(seed).permutation(units)
    return names, order % BLOCKS if units > BLOCKS else np.arange(units)
