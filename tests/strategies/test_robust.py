"""Robust rules against scipy and brute force, and what they bear and do not bear."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from strategy_helpers import aggregate, strategy_named

from fedfm.config import load_config
from fedfm.strategies import Update
from fedfm.strategies.reducers import bulyan, krum_scores, median, squared_distances, trimmed_mean

RULES = {"median": {}, "trimmed-mean": {"trim": 0.3}, "krum": {"byzantine": 2}, "multi-krum": {"byzantine": 2},
         "bulyan": {"byzantine": 2}, "norm-bound": {}}  # fmt: skip


def rows(n: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 9))


@pytest.mark.parametrize("trim", [0.0, 0.1, 0.2, 0.49])
@pytest.mark.parametrize("n", [1, 2, 5, 11])
def test_coordinate_rules_equal_scipy(n, trim):
    assert np.allclose(trimmed_mean(rows(n), trim), stats.trim_mean(rows(n), trim, axis=0), rtol=0, atol=1e-15)
    assert np.allclose(median(rows(n)), stats.scoreatpercentile(rows(n), 50, axis=0), rtol=0, atol=1e-15)


@pytest.mark.parametrize("bad", [0, 1, 3])
def test_krum_scores_by_brute_force(bad):
    """The sum over the n - f - 2 nearest is the smallest sum over any n - f - 2 others."""
    points, size = rows(8), 8 - bad - 2
    scores = krum_scores(squared_distances(points), bad)
    for i, score in enumerate(scores):
        others = [float(np.square(points[i] - points[j]).sum()) for j in range(8) if j != i]
        assert score == pytest.approx(min(sum(chosen) for chosen in combinations(others, size)))


def test_bulyan_by_hand():
    """n = 7, f = 1: of 0, 1, 2, 3, 4, 5 and 100 the five by Krum, then the three nearest to their median."""
    points = np.array([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0], [100.0]])
    assert bulyan(points, 1)[0] in (2.0, 3.0)
    assert bulyan(points[::-1].copy(), 1)[0] in (2.0, 3.0)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1e3, 1e8])
def test_two_of_eleven_liars_move_the_result_less_than_an_honest_site_could(name, size):
    honest = rows()
    lying = honest.copy()
    lying[[3, 7]] = -size
    results = []
    for values in (honest, lying):
        updates = [Update(f"s{k:02d}", "d", 10, {"shared/x": row}) for k, row in enumerate(values)]
        results.append(aggregate(strategy_named(name, **RULES[name]), {"shared/x": np.zeros(9)}, updates)["shared/x"])
    moved = np.linalg.norm(results[1] - results[0])
    assert moved < 2 * np.linalg.norm(honest, axis=1).max()
    mean = aggregate(strategy_named("fedavg"), {"shared/x": np.zeros(9)}, updates)["shared/x"]
    assert np.linalg.norm(mean - results[0]) > 100  # as FedAvg is moved


def test_a_majority_of_liars_wins():
    lying = rows(5)
    lying[:3] = 1e6
    updates = [Update(f"s{k}", "d", 10, {"shared/x": row}) for k, row in enumerate(lying)]
    assert aggregate(strategy_named("median"), {"shared/x": np.zeros(9)}, updates)["shared/x"].max() > 1e5


def test_groups_are_judged_apart_and_small_ones_take_the_median():
    """A site that lies about its head alone is borne on the shared tensors; its domain of two cannot tell."""
    draw = np.random.default_rng(2)
    updates = [
        Update(f"s{k}", f"d{k // 2}", 10, {"shared/x": draw.standard_normal(3), f"d{k // 2}/h": np.full(2, float(k))})
        for k in range(6)
    ]
    weights = {"shared/x": np.zeros(3), **{f"d{d}/h": np.zeros(2) for d in range(3)}}
    new = aggregate(strategy_named("krum", byzantine=1), weights, updates)
    assert new["d1/h"].tolist() == [2.5, 2.5]
    assert any(np.array_equal(new["shared/x"], update.delta["shared/x"]) for update in updates)


def test_advice_names_the_groups_that_are_too_small():
    config = load_config({"strategy": {"name": "bulyan"}})
    sentences = strategy_named("bulyan").advice(config)
    assert "bulyan: with 6 sites the shared tensors bear 0 bad updates, not 1 (that needs 7 sites)" in sentences
    assert len(sentences) == 4
    assert not strategy_named("krum", byzantine=0).advice(config.replace("domains.ner.sites=3"))[3:]


def test_a_norm_bound_cuts_the_norm_over_all_tensors():
    delta = {"shared/x": np.array([3.0, 0.0]), "d/h": np.array([0.0, 4.0])}
    new = aggregate(
        strategy_named("norm-bound", bound=1.0), {n: np.zeros(2) for n in delta}, [Update("s", "d", 1, delta)]
    )
    assert new["shared/x"].tolist() == pytest.approx([0.6, 0.0])
    assert new["d/h"].tolist() == pytest.approx([0.0, 0.8])


@pytest.mark.parametrize("name", ["median", "trimmed-mean", "krum", "multi-krum", "bulyan"])
def test_what_only_some_sites_of_a_group_send_leaves_the_vote_on_the_rest_to_all(name):
    """Texts train the embeddings of the shared body and images do not: five and two sites, seven on what both train."""
    rows = np.random.default_rng(8).standard_normal((7, 4))
    updates = [
        Update(f"s{i}", "d", 1, {"shared/body": row} | ({"shared/embeddings": row} if i < 5 else {}))
        for i, row in enumerate(rows)
    ]
    weights = {"shared/body": np.zeros(4), "shared/embeddings": np.zeros(4)}
    together = aggregate(strategy_named(name), weights, updates)
    for tensor, senders in (("shared/body", updates), ("shared/embeddings", updates[:5])):
        alone = [Update(u.site, u.domain, 1, {tensor: u.delta[tensor]}) for u in senders]
        expected = aggregate(strategy_named(name), {tensor: weights[tensor]}, alone)
        np.testing.assert_array_equal(together[tensor], expected[tensor])
