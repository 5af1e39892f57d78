"""Grouping of sites: planted groups are found again (adjusted Rand index 1), and a federation without groups stays one.

Sites of two groups have quadratic losses 1/2 ||x - c||^2 around two centres, each site's own centre a little off; local
work is three gradient steps. FedAvg of all would rest between the groups.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score
from strategy_helpers import round_of, strategy_named

from fedfm.strategies import Update
from fedfm.strategies.cfl import bipartition

SIZE, PER_GROUP, STEPS, RATE = 6, 4, 3, 0.3
GROUPS = [0] * PER_GROUP + [1] * PER_GROUP


def centres(apart: float) -> np.ndarray:
    draw = np.random.default_rng(4)
    middle = draw.standard_normal((2, SIZE))
    middle[1] = middle[0] + apart * (middle[1] - middle[0]) / np.linalg.norm(middle[1] - middle[0])
    return middle[GROUPS] + 0.05 * draw.standard_normal((len(GROUPS), SIZE))


def local_work(start: np.ndarray, centre: np.ndarray) -> np.ndarray:
    return (1 - (1 - RATE) ** STEPS) * (centre - start)


def play(strategy, own: np.ndarray, rounds: int = 30):
    """Rounds in which each site gets what the strategy has for it; of several candidates that of the least loss."""
    weights = {"shared/x": np.zeros(SIZE)}
    state = strategy.start(weights)
    for number in range(1, rounds + 1):
        variants = strategy.variants(weights, state)
        updates = []
        for k, centre in enumerate(own):
            metrics = {"loss": 1.0}
            start = variants[strategy.variant_of(state, f"s{k}")]["shared/x"]
            if strategy.candidates:
                models = np.array([state[name]["shared/x"] for name in strategy.candidates])
                choice = int(cdist(models, centre[None]).argmin())
                start, metrics["choice"] = models[choice], float(choice)
            updates.append(Update(f"s{k}", "d", 10 + k, {"shared/x": local_work(start, centre)}, metrics))
        weights, state = strategy.aggregate(weights, iter(updates), state, round_of(updates, number=number))
    variants = strategy.variants(weights, state)
    chosen = [strategy.variant_of(state, f"s{k}") for k in range(len(own))]
    return chosen, [variants[name]["shared/x"] for name in chosen], weights["shared/x"]


@pytest.mark.parametrize("strategy", [strategy_named("cfl", after=3), strategy_named("ifca", spread=0.5)], ids=repr)
def test_planted_groups_are_found_and_each_comes_to_its_own_centre(strategy):
    own = centres(apart=3.0)
    chosen, models, whole = play(strategy, own)
    assert adjusted_rand_score(GROUPS, chosen) == 1
    sizes = np.array([10 + k for k in range(len(own))])
    for group in (0, 1):
        members = np.array(GROUPS) == group
        rest = np.average(own[members], axis=0, weights=sizes[members])
        for k in np.flatnonzero(members):
            assert np.abs(models[k] - rest).max() < 1e-3
    assert np.abs(whole - np.average(own, axis=0, weights=sizes)).max() < 1e-3  # what a new site would get


def test_sites_that_agree_stay_together():
    """Small differences at a point far from rest do not split a cluster."""
    chosen, *_ = play(strategy_named("cfl"), centres(apart=0.0) + 20.0, rounds=4)
    assert set(chosen) == {"0"}


def test_the_bipartition_makes_the_largest_cosine_across_smallest():
    """Against all bipartitions of seven vectors, by brute force."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        rows = draw.standard_normal((7, 3))
        unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        cosines = unit @ unit.T
        found = bipartition(rows)
        across = cosines[found == 0][:, found == 1].max()
        masks = [np.array([bits >> i & 1 for i in range(7)]) for bits in range(1, 2**6)]
        best = min(cosines[mask == 0][:, mask == 1].max() for mask in masks)
        assert across == pytest.approx(best)
