"""Small updates and the server half of a strategy, one call for what a round does with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedfm.arrays import Arrays
from fedfm.config import StrategyConfig
from fedfm.strategies import Round, Strategy, Update, make_strategy


def strategy_named(name: str, **own: float) -> Strategy:
    """The strategy that `[strategy] name = ...` with these own keys gives (underscores for dashes)."""
    return make_strategy(StrategyConfig(name=name, **{key.replace("_", "-"): value for key, value in own.items()}))


def aggregate(
    strategy: Strategy, weights: Arrays, updates: Sequence[Update], domain_weights: Mapping[str, float] | None = None
) -> Arrays:
    """The new weights after one round from a fresh state; updates are read once, as a stream."""
    new, _ = strategy.aggregate(weights, iter(updates), strategy.start(weights), round_of(updates, domain_weights))
    return new


def round_of(updates: Sequence[Update], domain_weights: Mapping[str, float] | None = None, number: int = 1) -> Round:
    """A round of which every registered site has sent its update."""
    sites = {u.site: u.domain for u in updates}
    return Round(number, 0, sites, {u.site: u.num_examples for u in updates}, domain_weights or {})


def largest_difference(left: Arrays, right: Arrays) -> float:
    assert left.keys() == right.keys()
    return max(float(np.abs(np.asarray(left[name], np.float64) - right[name]).max()) for name in left)
