"""Verdicts: what may be concluded from an excess over chance, and when nothing can be told.

A report never says more than its numbers bear. A measured excess comes with an interval; a claim
is true where the whole interval lies on one side of a limit, and cannot be told where the interval
holds the limit. Samples of one group (a scene, a place) are not independent: they count together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

LEVEL = 0.05  # level of every test: how often it may be wrong where there is nothing
_EQUAL = 1e-9  # values that differ by less than this share of the largest are the same


class Verdict(StrEnum):
    """The answer to a question about numbers."""

    YES = "yes"
    NO = "no"
    UNTOLD = "cannot be told"


@dataclass(frozen=True, order=True)
class Interval:
    """A measured value, and the range in which the true one lies with the probability asked for.

    Args:
        value: what was measured.
        low: the lower end; -inf where nothing can be told.
        high: the upper end; inf where nothing can be told.
    """

    value: float
    low: float = -np.inf
    high: float = np.inf

    def __sub__(self, other: float) -> Interval:
        return Interval(self.value - other, self.low - other, self.high - other)

    def __float__(self) -> float:
        return float(self.value)  # whoever measured may have left a NumPy number

    def __str__(self) -> str:
        """Return "0.81 (0.75 to 0.86)", the value alone without bounds, or "–" if undefined."""
        if np.isnan(self.value):
            return "–"
        known = np.isfinite((self.low, self.high)).all()
        ends = f" ({self.low:z.2f} to {self.high:z.2f})" if known else ""
        return f"{self.value:z.2f}{ends}"  # z: what rounds to nothing has no sign

    def above(self, limit: float = 0.0) -> Verdict:
        """Tell whether the true value is above a limit."""
        if self.low > limit:
            return Verdict.YES
        return Verdict.NO if self.high <= limit else Verdict.UNTOLD


def all_of(*verdicts: Verdict) -> Verdict:
    """Return whether all claims are true: NO as soon as one is false."""
    if Verdict.NO in verdicts:
        return Verdict.NO
    return Verdict.UNTOLD if Verdict.UNTOLD in verdicts else Verdict.YES


def any_of(*verdicts: Verdict) -> Verdict:
    """Return whether one claim is true: YES as soon as one is."""
    if Verdict.YES in verdicts:
        return Verdict.YES
    return Verdict.UNTOLD if Verdict.UNTOLD in verdicts else Verdict.NO


def standard_error(
    influence: NDArray[Any], groups: Sequence[Any] | NDArray[Any] | None = None
) -> tuple[Float, int]:
    """Return the standard error of a mean, or of whatever the influence of samples adds up to.

    With groups it is the cluster-robust one (Liang and Zeger 1986): the influences of a group are
    added first, so that a hundred copies of a sample tell no more than one.

    Args:
        influence: (N, ...) by how much each sample moves the result, with mean 0 over samples.
        groups: (N,) of the samples; None: each is one of its own.

    Returns:
        The standard error (...), and the degrees of freedom: groups less one.
    """
    x = np.asarray(influence, np.float64)
    count = len(x)
    if groups is not None:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
        summed = np.zeros((codes.max(initial=-1) + 1, *x.shape[1:]))
        np.add.at(summed, codes, x)
        x = summed
    if len(x) < 2:
        return np.full(x.shape[1:], np.inf), 0
    squares = (x**2).sum(0) * len(x) / (len(x) - 1)
    return np.asarray(np.sqrt(squares) / count), len(x) - 1


def ratio_interval(
    numerator: NDArray[Any],
    denominator: NDArray[Any],
    groups: Sequence[Any] | NDArray[Any] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Return the ratio of two sums over samples with its interval, by Student's t.

    Values that are all the same have no spread to tell anything by: the interval is unbounded,
    unless there are so many of them that equal signs alone are no chance.

    Args:
        numerator: (N,).
        denominator: (N,), not negative.
        groups: (N,) of the samples; None: each is one of its own.
        level: probability that the true ratio lies outside.
    """
    from scipy.stats import t

    a, b = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    total = b.sum()
    if not total > 0:
        return Interval(float("nan"))
    ratio = float(a.sum() / total)
    error, freedom = standard_error((a - ratio * b) * (len(b) / total), groups)
    if not freedom:
        return Interval(ratio)
    if error <= _EQUAL * max(abs(ratio), np.finfo(float).tiny):
        return Interval(ratio, ratio, ratio) if _signs(freedom + 1) <= level else Interval(ratio)
    reach = float(t.ppf(1 - level / 2, freedom) * error)
    return Interval(ratio, ratio - reach, ratio + reach)


def mean_interval(
    values: NDArray[Any],
    groups: Sequence[Any] | NDArray[Any] | None = None,
    level: float = LEVEL,
) -> Interval:
    """Return a mean with its interval; see `ratio_interval`."""
    return ratio_interval(values, np.ones(len(values)), groups, level)


def paired_p(differences: Sequence[float] | Float) -> float:
    """Return the two-sided p-value of paired differences: Student's t, 1 where nothing is told.

    Differences that are all equal have no spread; the test is then the one of signs, which two or
    three of them never pass.

    Args:
        differences: one a pair.
    """
    from scipy.stats import ttest_1samp

    x = np.asarray(differences, np.float64)
    if len(x) < 2 or not np.any(x):
        return 1.0
    if np.ptp(x) <= _EQUAL * np.abs(x).max():
        return _signs(len(x))
    return float(ttest_1samp(x, 0).pvalue)


def _signs(count: int) -> float:
    """Return the two-sided probability that so many signs are all the same by chance."""
    return min(1.0, 2.0 ** (1 - count))


def holm(p_values: Sequence[float] | Float, level: float = LEVEL) -> NDArray[np.bool_]:
    """Tell which of several tests pass when any false one among them may have probability `level`.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, 1979.

    Args:
        p_values: one a test.
        level: of all tests together.
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    passed = np.zeros(len(p), bool)
    limits = level / np.arange(len(p), 0, -1)
    passed[order] = np.logical_and.accumulate(p[order] <= limits)
    return passed
