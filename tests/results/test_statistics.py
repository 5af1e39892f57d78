"""Statistics against scipy, statsmodels and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fedfm.results.statistics import gini, holm, interval, paired

some = st.lists(st.floats(0, 1), min_size=2, max_size=8)


def test_an_interval_by_hand():
    """Values 1, 2, 3: mean 2, sd 1, standard error 1/sqrt(3); t(0.975, 2) = 4.302653 -> 2 +- 2.484138."""
    found = interval([1.0, 2.0, 3.0])
    assert found[:3] == (3, 2.0, 1.0)
    assert (found.low, found.high) == pytest.approx((2 - 2.4841377, 2 + 2.4841377), abs=1e-6)


@given(some)
def test_an_interval_is_scipy_s(values):
    found, array = interval(values), np.array(values)
    if array.std() == 0:
        assert found.low == found.high == found.mean
        return
    low, high = stats.t.interval(0.95, len(values) - 1, array.mean(), stats.sem(array))
    assert (found.mean, found.low, found.high) == pytest.approx((array.mean(), low, high))


def test_what_few_values_cannot_say_is_nan():
    assert interval([])[0] == 0
    assert math.isnan(interval([]).mean)
    one = interval([0.5, math.nan])
    assert (one.count, one.mean) == (1, 0.5)
    assert math.isnan(one.sd)
    assert math.isnan(one.low)
    assert math.isnan(paired([0.5], [0.4]).p_t)
    assert math.isnan(paired([0.5, 0.6], [0.4, 0.5 + 1e-17]).p_wilcoxon) or paired([0.5, 0.6], [0.4, 0.5]).count == 2


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8))
def test_paired_tests_are_scipy_s(pairs):
    left, right = (np.array(side) for side in zip(*pairs, strict=True))
    found = paired(left, right)
    gaps = left - right
    if not np.ptp(gaps) > 1e-9:  # equal up to rounding
        assert math.isnan(found.p_t)
        return
    assert found.mean == pytest.approx(gaps.mean())
    with np.errstate(all="ignore"):
        assert found.p_t == pytest.approx(stats.ttest_rel(left, right).pvalue, nan_ok=True)
        assert found.p_wilcoxon == pytest.approx(stats.wilcoxon(left, right).pvalue)


@pytest.mark.parametrize(
    ("left", "right"),
    [([0.8, 0.7], [0.75, 0.65]), ([0.5, 0.5, 0.5], [0.25, 0.25, 0.25]), ([0.3, 0.6], [0.3, 0.6])],
)
def test_gaps_that_are_equal_up_to_rounding_say_nothing_but_their_mean(left, right):
    """0.8 - 0.75 and 0.7 - 0.65 differ in the sixteenth digit: of that scipy makes p = 7e-16."""
    found = paired(left, right)
    assert (found.count, found.mean) == (len(left), pytest.approx(left[0] - right[0]))
    assert all(math.isnan(value) for value in found[2:])


def test_small_gaps_that_differ_are_tested():
    found = paired([1e-6, 2e-6, 3e-6], [0.0, 0.0, 0.0])
    assert found.p_t == pytest.approx(stats.ttest_1samp([1e-6, 2e-6, 3e-6], 0.0).pvalue)


def test_pairs_with_a_value_missing_are_left_out():
    found = paired([0.5, math.nan, 0.9, 0.7], [0.4, 0.3, 0.6, 0.5])
    assert found.count == 3
    assert found.mean == pytest.approx(0.2)


def test_holm_by_hand_and_by_statsmodels():
    """Three values: 0.01 * 3, max(0.03, 0.02 * 2), max(0.04, 0.03 * 1)."""
    assert holm([0.01, math.nan, 0.03, 0.02]) == pytest.approx([0.03, math.nan, 0.04, 0.04], nan_ok=True)
    values = [0.2, 0.001, 0.04, 0.9]
    assert holm(values) == pytest.approx(multipletests(values, method="holm")[1])
    assert all(math.isnan(value) for value in holm([math.nan]))


def test_gini_by_hand():
    """(0, 1): mean difference over all four ordered pairs 1/2, mean 1/2: 1/2 / (2 * 1/2)."""
    assert gini([0.0, 1.0]) == pytest.approx(0.5)
    assert gini([0.7, 0.7, 0.7]) == 0
    assert math.isnan(gini([]))
