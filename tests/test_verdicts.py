"""Verdicts on hand-made numbers: intervals cover what they claim, and few samples tell nothing."""

import numpy as np
import pytest
from scipy.stats import t, ttest_1samp, ttest_rel

from decur.verdicts import (
    Interval,
    Verdict,
    all_of,
    any_of,
    holm,
    mean_interval,
    paired_p,
    ratio_interval,
    standard_error,
)

YES, NO, UNTOLD = Verdict.YES, Verdict.NO, Verdict.UNTOLD


def test_a_limit_within_the_interval_cannot_be_told():
    found = Interval(0.5, 0.4, 0.6)
    assert [found.above(limit) for limit in (0.3, 0.45, 0.6)] == [YES, UNTOLD, NO]
    assert (found - 0.5).above() == UNTOLD and Interval(0.5).above() == UNTOLD
    assert Interval(float("nan")).above() == UNTOLD
    assert str(found) == "0.50 (0.40 to 0.60)" and str(Interval(0.5)) == "0.50"
    assert str(Interval(float("nan"))) == "–"
    assert all_of(YES, UNTOLD) == UNTOLD and all_of(UNTOLD, NO) == NO and all_of(YES) == YES
    assert any_of(NO, UNTOLD) == UNTOLD and any_of(UNTOLD, YES) == YES and any_of(NO) == NO


@pytest.mark.parametrize("count", [2, 3, 30])
def test_the_interval_of_a_mean_is_students(count):
    x = np.random.default_rng(0).normal(1, 2, count)
    found, known = mean_interval(x), ttest_1samp(x, 0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_copies_of_a_sample_tell_no_more_than_one():
    x = np.random.default_rng(0).normal(1, 2, 8)
    alone = mean_interval(x)
    copies = mean_interval(np.repeat(x, 50), np.repeat(np.arange(8), 50))
    assert (copies.low, copies.high) == pytest.approx((alone.low, alone.high))
    assert mean_interval(np.repeat(x, 50)).low > copies.low  # as if they were independent
    assert mean_interval(x, ["one"] * 8).above() == UNTOLD


def test_equal_values_of_few_samples_are_no_certainty():
    for count, verdict in ((1, UNTOLD), (2, UNTOLD), (3, UNTOLD), (6, YES)):
        assert mean_interval(np.full(count, 0.1)).above() == verdict
        assert (paired_p(np.full(count, 0.1)) < 0.05) == (verdict == YES)
    assert paired_p([0.0, 0.0, 0.0]) == 1
    one, other = [0.5, 0.6, 0.8], [0.4, 0.55, 0.6]
    assert paired_p(np.subtract(one, other)) == pytest.approx(ttest_rel(one, other).pvalue)


@pytest.mark.parametrize("grouped", [False, True])
def test_the_interval_of_a_ratio_covers_it_as_often_as_it_claims(grouped):
    """R2 is such a ratio: squared errors over squares."""
    rng, hits, rounds = np.random.default_rng(0), 0, 400
    groups = np.repeat(np.arange(30), 5) if grouped else None
    for _ in range(rounds):
        shared = np.repeat(rng.normal(size=30), 5) if grouped else 0
        truth, error = rng.normal(size=(2, 150)) + shared
        found = ratio_interval((0.5 * error) ** 2, truth**2, groups)
        hits += found.low <= 0.25 <= found.high
    assert 0.9 < hits / rounds < 0.98


def test_a_sum_of_nothing_has_no_ratio():
    found = ratio_interval(np.zeros(5), np.zeros(5))
    assert np.isnan(found.value) and found.above(-1) == UNTOLD


def test_errors_of_columns_are_those_of_each():
    x = np.random.default_rng(0).normal(size=(40, 3))
    errors, freedom = standard_error(x - x.mean(0))
    assert freedom == 39
    np.testing.assert_allclose(errors, x.std(0, ddof=1) / np.sqrt(40))
    reach = t.ppf(0.975, 39) * errors[0]
    assert mean_interval(x[:, 0]).high == pytest.approx(x[:, 0].mean() + reach)


def test_holm_by_hand():
    """Of four tests the smallest must pass 0.05 / 4, the next 0.05 / 3; one that fails stops."""
    assert holm([0.012, 0.06, 0.016, 0.024]).tolist() == [True, False, True, True]
    assert holm([0.013, 0.0, 0.02]).tolist() == [True, True, True]
    assert holm([0.02, 0.03]).tolist() == [True, True]
    assert holm([0.03, 0.04]).tolist() == [False, False]
    assert holm([]).tolist() == []


def test_an_interval_of_numpy_numbers_is_a_plain_number_where_one_is_asked_for():
    assert type(float(Interval(np.float64(0.5)))) is float
