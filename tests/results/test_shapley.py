"""Shapley values: the axioms, and the average over all orders in which sites may come."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest

from fedfm.results.contributions import coalitions, left_out_values, shapley_values

SITES = ("a", "b", "c", "d")


def game(seed: int, sites=SITES) -> dict[frozenset[str], float]:
    draw = np.random.default_rng(seed)
    return {group: float(draw.random()) for group in [frozenset(), *coalitions(sites, shapley=True)]}


@pytest.mark.parametrize("seed", range(5))
def test_shapley_is_the_mean_over_all_orders_and_efficient(seed):
    values = game(seed)
    found = shapley_values(values)
    brute = dict.fromkeys(SITES, 0.0)
    for order in permutations(SITES):
        for place, site in enumerate(order):
            before = frozenset(order[:place])
            brute[site] += (values[before | {site}] - values[before]) / math.factorial(len(SITES))
    assert found == pytest.approx(brute)
    assert sum(found.values()) == pytest.approx(values[frozenset(SITES)] - values[frozenset()])


def test_symmetry_null_player_and_additivity():
    """v(S) = 1 where a and b are both there, 2 more for c: a and b get 1/2 each, c 2, d nothing."""
    groups = [frozenset(), *coalitions(SITES, shapley=True)]
    values = {group: float({"a", "b"} <= group) + 2.0 * ("c" in group) for group in groups}
    assert shapley_values(values) == pytest.approx({"a": 0.5, "b": 0.5, "c": 2.0, "d": 0.0})
    other = game(3)
    both = {group: values[group] + other[group] for group in groups}
    one, two, sums = shapley_values(values), shapley_values(other), shapley_values(both)
    assert sums == pytest.approx({site: one[site] + two[site] for site in SITES})


def test_left_out_by_hand_and_which_runs_are_needed():
    values = {frozenset("ab"): 0.9, frozenset("a"): 0.6, frozenset("b"): 0.8, frozenset(): 0.1}
    assert left_out_values(values) == pytest.approx({"a": 0.1, "b": 0.3})
    assert len(coalitions("abcdef", shapley=True)) == 63
    assert coalitions("abc", shapley=False) == [frozenset("ab"), frozenset("ac"), frozenset("bc"), frozenset("abc")]
