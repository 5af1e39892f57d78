"""Intervals and tests over seeds, by scipy and statsmodels; what few seeds cannot say is NaN, never a guess."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
ROUNDING = 1e-9  # gaps that lie closer than this, for their size, are the same gap


class Interval(NamedTuple):
    """Mean, standard deviation (n - 1), and the Student interval of the mean; NaN where one value says nothing."""

    count: int
    mean: float
    sd: float
    low: float
    high: float


class Paired(NamedTuple):
    """The differences of pairs: their interval, and the p-values of two tests that their mean or median is 0.

    NaN but for count and mean where there are fewer than two, or all are the same gap: no spread says how far another
    seed's might lie.
    """

    count: int
    mean: float
    low: float
    high: float
    p_t: float
    p_wilcoxon: float


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Of values that are finite; the others are not counted."""
    kept = np.asarray([value for value in values if math.isfinite(value)], float)
    if not len(kept):
        return Interval(0, math.nan, math.nan, math.nan, math.nan)
    mean = float(kept.mean())
    if len(kept) == 1:
        return Interval(1, mean, math.nan, math.nan, math.nan)
    error = float(stats.sem(kept))
    low, high = stats.t.interval(level, len(kept) - 1, mean, error) if error > 0 else (mean, mean)
    return Interval(len(kept), mean, float(kept.std(ddof=1)), float(low), float(high))


def paired(left: Sequence[float], right: Sequence[float], level: float = LEVEL) -> Paired:
    """Left minus right, pair by pair: paired t and Wilcoxon's signed rank; pairs with a value missing are left out.

    left, right: as many numbers each. Gaps that differ by rounding alone count as equal (see `Paired`).
    """
    gaps = np.asarray(left, float) - np.asarray(right, float)
    gaps = gaps[np.isfinite(gaps)]
    found = interval(gaps, level)
    if len(gaps) < 2 or not np.ptp(gaps) > ROUNDING * max(1.0, abs(found.mean)):
        return Paired(len(gaps), found.mean, math.nan, math.nan, math.nan, math.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy says of small samples what the caller knows
        p_t = float(stats.ttest_1samp(gaps, 0.0).pvalue)
        p_wilcoxon = float(stats.wilcoxon(gaps).pvalue)
    return Paired(len(gaps), found.mean, found.low, found.high, p_t, p_wilcoxon)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979, https://www.jstor.org/stable/4615733); NaN stays, uncounted."""
    p = np.asarray(values, float)
    known = np.isfinite(p)
    corrected = np.full(len(p), math.nan)
    if known.any():
        corrected[known] = multipletests(p[known], method="holm")[1]
    return corrected.tolist()


def gini(values: Sequence[float]) -> float:
    """Half the mean absolute difference of all pairs over their mean: 0 where all sites fare alike."""
    kept = np.asarray([value for value in values if math.isfinite(value)], float)
    if not len(kept) or kept.mean() <= 0:
        return math.nan
    return float(np.abs(kept[:, None] - kept[None, :]).mean() / (2 * kept.mean()))
