"""How sure a metric is: resampling the test part."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from decur.transfer.tasks import Kept, Task

log = logging.getLogger(__name__)


def intervals(
    task: Task, kept: Kept, resamples: int, seed: int = 0, groups: Sequence[str] | None = None
) -> dict[str, tuple[float, float]]:
    """Bootstrap 95 % intervals (percentiles) of a task's metrics.

    Args:
        task: whose metrics.
        kept: what it keeps of the test part.
        resamples: how often the test part is drawn anew, with replacement; 0 gives nothing.
        seed: of the draws.
        groups: of the test samples; whole groups are drawn where there are some, since samples of
            one group are not independent.

    Returns:
        `{metric: (low, high)}`; NaN where a metric could never be measured. Empty for a single
        sample or group: drawn anew it is the same again, which says nothing.
    """
    if resamples < 1:
        return {}
    measured = {key: kept[key] for key in task.measured}
    count = len(next(iter(measured.values())))
    units = [np.array([row]) for row in range(count)]
    if groups is not None:
        names = np.array(groups)
        units = [np.flatnonzero(names == name) for name in np.unique(names)]
    if len(units) < 2:
        unit = "sample" if groups is None else "group"
        log.warning("the test part is a single %s, so its metrics have no interval", unit)
        return {}
    rng = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}
    for _ in range(resamples):
        rows = np.concatenate([units[i] for i in rng.integers(0, len(units), len(units))])
        for name, value in task.metrics({k: v[rows] for k, v in measured.items()}).items():
            found.setdefault(name, []).append(value)
    limits = {}
    for name, values in found.items():
        there = np.array(values)[~np.isnan(values)]
        low, high = np.percentile(there, (2.5, 97.5)) if len(there) else (np.nan, np.nan)
        limits[name] = (float(low), float(high))
    return limits
