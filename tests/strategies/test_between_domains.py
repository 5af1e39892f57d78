"""Rules between domains: the properties by which they are known, and the policies of domain weights."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_helpers import aggregate, round_of, strategy_named

from fedfm.strategies import Round, Update
from fedfm.strategies.conflicts import combined
from fedfm.strategies.domain_weights import POLICIES, weigh
from fedfm.strategies.ties import trim

ROUND = Round(number=3, seed=5)


def rows(domains: int = 3, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((domains, width))


def combine(name: str, values, **own) -> np.ndarray:
    return strategy_named(name, **own).combine(np.asarray(values, np.float64), ROUND)


def test_pcgrad_of_opposed_vectors_is_nothing_and_of_orthogonal_ones_the_mean():
    assert np.abs(combine("pcgrad", [[1.0, 2.0], [-1.0, -2.0]])).max() < 1e-15
    assert combine("pcgrad", [[2.0, 0.0], [0.0, 4.0]]).tolist() == [1.0, 2.0]


def test_pcgrad_by_hand():
    """g1 = (1, 0), g2 = (-1, 1): g1' = g1 + g2 / 2 = (1/2, 1/2), g2' = g2 + g1 = (0, 1); mean (1/4, 3/4)."""
    assert np.allclose(combine("pcgrad", [[1.0, 0.0], [-1.0, 1.0]]), [0.25, 0.75], atol=1e-15)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("c", [0.0, 0.3, 0.9])
def test_cagrad_stays_near_the_mean_and_is_better_for_the_worst(seed, c):
    own = rows(seed=seed)
    mean, found = own.mean(axis=0), combine("cagrad", own, c=c)
    assert np.linalg.norm(found - mean) <= c * np.linalg.norm(mean) + 1e-9
    assert (own @ found).min() >= (own @ mean).min() - 1e-9
    if c == 0:
        assert np.allclose(found, mean, rtol=0, atol=1e-15)
        return
    draw = np.random.default_rng(1)  # no point of the ball is better
    around = draw.standard_normal((4000, own.shape[1]))
    around *= c * np.linalg.norm(mean) / np.linalg.norm(around, axis=1, keepdims=True)
    assert (own @ found).min() >= ((mean + around) @ own.T).min(axis=1).max() - 1e-6


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("domains", [1, 2, 3, 6])
def test_mgda_is_the_point_of_least_norm(seed, domains):
    """KKT: <g_d, g> >= ||g||^2 for all d; and no mixture is shorter."""
    own = rows(domains, seed=seed)
    found = combine("mgda", own)
    assert (own @ found).min() >= found @ found - 1e-9
    mixtures = np.random.default_rng(2).dirichlet(np.ones(domains), 2000) @ own
    assert np.linalg.norm(found) <= np.linalg.norm(mixtures, axis=1).min() + 1e-9


def test_a_loud_domain_rules_the_mean_and_not_the_least_common_step():
    """F1 = 1/2 |w - a|^2, F2 = 5 |w - b|^2 from the same start: the mean goes with F2, MGDA helps both or rests."""
    a, b, w = np.array([0.0, 0.0]), np.array([1.0, 0.0]), np.array([0.45, 0.0])
    quiet, loud = a - w, 10 * (b - w)
    assert (quiet + loud) @ quiet < 0
    assert np.abs(combine("mgda", [quiet, loud])).max() < 1e-9
    assert np.abs(combine("pcgrad", [quiet, loud])).max() < 1e-9  # surgery cannot remove what is wholly opposed


def test_ties_of_one_task_is_its_trimmed_vector_and_signs_are_elected():
    (row,) = rows(1)
    assert np.array_equal(combine("ties", [row], keep=0.25), trim(row, 0.25))
    assert np.count_nonzero(trim(row, 0.25)) == 2
    assert np.abs(row)[trim(row, 0.25) == 0].max() <= np.abs(row)[trim(row, 0.25) != 0].min()
    merged = combine("ties", [[3.0, -1.0, 0.0], [-1.0, -3.0, 0.0], [5.0, 8.0, 0.0]], keep=1.0)
    assert merged.tolist() == [4.0, 8.0, 0.0]  # sums 7, 4, 0: the mean of those with that sign


def test_dare_is_unbiased():
    """Within four standard errors of task arithmetic, over 4000 rounds' draws."""
    own, strategy = rows(2), strategy_named("dare", drop=0.7)
    drawn = np.array([strategy.combine(own, Round(number=t)) for t in range(4000)])
    error = drawn.std(axis=0) / np.sqrt(len(drawn))
    assert (np.abs(drawn.mean(axis=0) - combine("task-arithmetic", own)) < 4 * error).all()
    assert np.array_equal(strategy.combine(own, ROUND), strategy.combine(own, ROUND))


def test_domain_sum_is_the_sum_up_to_its_trust():
    own = np.array([[3.0, 0.0], [0.0, 4.0]])
    assert combine("domain-sum", own).tolist() == [3.0, 4.0]
    cut = combine("domain-sum", own, trust=1.0)  # norm 5, mean norm 3.5
    assert np.linalg.norm(cut) == pytest.approx(3.5)
    assert combine("domain-sum", own, trust=2.0).tolist() == [3.0, 4.0]


@pytest.mark.parametrize("name", ["pcgrad", "cagrad", "mgda", "task-arithmetic", "ties", "dare", "domain-sum"])
def test_what_belongs_to_a_domain_is_averaged_as_in_fedavg(name):
    draw = np.random.default_rng(3)
    updates = [
        Update(f"s{k}", d, n, {"shared/x": draw.standard_normal(4), f"{d}/h": draw.standard_normal(2)})
        for k, (d, n) in enumerate((("a", 5), ("a", 50), ("b", 9)))
    ]
    weights = {"shared/x": np.zeros(4), "a/h": np.zeros(2), "b/h": np.zeros(2)}
    plain, new = (
        aggregate(strategy_named("fedavg"), weights, updates),
        aggregate(strategy_named(name), weights, updates),
    )
    assert np.array_equal(plain["a/h"], new["a/h"])
    assert np.array_equal(plain["b/h"], new["b/h"])
    if name == "domain-sum":
        assert np.allclose(new["shared/x"], 2 * plain["shared/x"], atol=1e-15)


def test_tensor_by_tensor_is_another_rule_than_all_as_one_vector():
    means = {"a": {"shared/x": np.array([1.0]), "shared/y": np.array([3.0])},
             "b": {"shared/x": np.array([-1.0]), "shared/y": np.array([3.0])}}  # fmt: skip
    rule = lambda values: strategy_named("pcgrad").combine(values, ROUND)  # noqa: E731
    assert combined(means, {}, rule, "all") == {"shared/x": [0.0], "shared/y": [3.0]}
    assert combined(means, {}, rule, "tensor") == {"shared/x": [0.0], "shared/y": [3.0]}
    means["b"]["shared/y"] = np.array([0.1])  # now the whole vectors conflict, and y alone does not
    whole, alone = (combined(means, {}, rule, scope)["shared/y"][0] for scope in ("all", "tensor"))
    assert alone == pytest.approx(1.55)
    assert whole != pytest.approx(1.55)


def test_policies_of_domain_weights():
    sizes, losses = {"a": 100, "b": 400}, {"a": 1.0, "b": 2.0}
    assert weigh("given", {"a": 3.0}, sizes, losses, {})[0] == {"a": 3.0, "b": 1.0}
    assert weigh("uniform", {"a": 3.0}, sizes, losses, {})[0] == {"a": 1.0, "b": 1.0}
    assert weigh("size", {}, sizes, losses, {})[0] == {"a": 100.0, "b": 400.0}
    assert weigh("sqrt-size", {}, sizes, losses, {})[0] == {"a": 10.0, "b": 20.0}
    first, state = weigh("loss-adaptive", {}, sizes, losses, {})
    assert first["a"] == first["b"]
    later, _ = weigh("loss-adaptive", {}, sizes, {"a": 0.5, "b": 2.0}, state)
    assert later["b"] / later["a"] == pytest.approx(np.exp(1.0 - 0.5))  # whose loss does not fall counts more
    state = {}
    for _ in range(300):
        chosen, state = weigh("uncertainty", {}, sizes, {"a": 0.5, "b": 2.0}, state | {"first": {"a": 1.0, "b": 1.0}})
    assert chosen["a"] == pytest.approx(1 / 0.5, rel=1e-6)  # at rest exp(-s) L = 1
    assert chosen["b"] == pytest.approx(1 / 2.0, rel=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_fedavg_under_every_policy_is_a_weighted_mean(policy):
    strategy = strategy_named("fedprox", domain_weights=policy)
    updates = [Update("s0", "a", 10, {"shared/x": np.array([1.0])}, {"loss": 1.0}),
               Update("s1", "b", 90, {"shared/x": np.array([3.0])}, {"loss": 2.0})]  # fmt: skip
    new, _ = strategy.aggregate({"shared/x": np.zeros(1)}, iter(updates), {}, round_of(updates))
    expected = {"size": 2.8, "sqrt-size": (np.sqrt(10) + 3 * np.sqrt(90)) / (np.sqrt(10) + np.sqrt(90))}.get(
        policy, 2.0
    )
    assert new["shared/x"][0] == pytest.approx(expected)
