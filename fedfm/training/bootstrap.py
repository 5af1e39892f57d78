"""An interval of one run's test score: bootstrap over the test items."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from fedfm.config import Task
from fedfm.training.metrics import Tally, metrics, tally_classification

RESAMPLES = 999


def score_of(task: Task, items: Mapping[str, np.ndarray], labels: Sequence[str], metric: str) -> float:
    """A metric of test outcomes as `predictions/` holds them (loss apart, which they do not hold)."""
    if task == "token-classification":
        tally = Tally(math.nan, len(items["spans"]), {n: items[n].sum(axis=0, dtype=np.int64) for n in items})
    else:
        with_scores = task == "image-classification"
        tally = tally_classification(items["probabilities"], items["labels"].astype(np.int64), math.nan, with_scores)
    return metrics(task, tally, labels)[metric]


def bootstrap_interval(
    task: Task, items: Mapping[str, np.ndarray], labels: Sequence[str], metric: str, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Percentile interval of `metric` over resampled test items (Efron 1979, https://doi.org/10.1214/aos/1176344552).

    An item is an image, a text, a sentence. A sample on which the metric is not defined (an AUC of one class) says
    nothing; NaN where that is every second sample, or where there are fewer than two items.
    """
    count = len(next(iter(items.values()))) if items else 0
    if count < 2:
        return math.nan, math.nan

    def of_sample(index: np.ndarray) -> float:
        return score_of(task, {name: values[index] for name, values in items.items()}, labels, metric)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # samples without a value are left out below
        found = stats.bootstrap(
            (np.arange(count),), of_sample, n_resamples=RESAMPLES, vectorized=False, method="percentile",
            confidence_level=level, rng=np.random.default_rng(seed),
        )  # fmt: skip
    drawn = found.bootstrap_distribution
    if np.isnan(drawn).mean() >= 0.5:
        return math.nan, math.nan
    low, high = np.nanquantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
