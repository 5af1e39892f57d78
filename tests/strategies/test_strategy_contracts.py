"""What every row of STRATEGIES promises."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_helpers import aggregate, largest_difference, round_of, strategy_named

from fedfm.arrays import Arrays
from fedfm.config import StrategyConfig, load_config
from fedfm.errors import ConfigError
from fedfm.federation.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fedfm.strategies import STRATEGIES, SiteRows, Update, check_strategy, make_strategy, prepared
from fedfm.training.local_round import MODELS

SHAPES = {"shared/lora": (3, 2), "finance/head": (4,), "ner/head": (2, 2)}
every_strategy = pytest.mark.parametrize("name", STRATEGIES)
every_average = pytest.mark.parametrize("name", [name for name, strategy in STRATEGIES.items() if strategy.averages])


def draw_arrays(draw: np.random.Generator, domain: str = "", dtype=np.float32, scale: float = 1.0) -> Arrays:
    """All tensors, or those that a site of `domain` trains."""
    wanted = [n for n in SHAPES if not domain or n.startswith(("shared/", f"{domain}/"))]
    return {name: (scale * draw.standard_normal(SHAPES[name])).astype(dtype) for name in wanted}


METRICS = {"loss": 0.7, "steps": 3.0, "start-loss": 0.9}  # what every site tells, and what some strategies ask for


def draw_updates(draw: np.random.Generator, **how) -> list[Update]:
    domains = ("finance", "finance", "ner", "ner", "ner")
    return [
        Update(f"s{i}", d, int(draw.integers(1, 500)), draw_arrays(draw, d, **how), METRICS)
        for i, d in enumerate(domains)
    ]


@every_average
def test_one_site_alone_gets_what_it_sent(name):
    draw = np.random.default_rng(0)
    weights, delta = draw_arrays(draw), draw_arrays(draw, "finance")
    new = aggregate(strategy_named(name), weights, [Update("bank", "finance", 17, delta, METRICS)], {"finance": 5.0})
    for tensor in weights:
        expected = weights[tensor] + delta.get(tensor, 0)
        assert np.allclose(new[tensor], expected, rtol=0, atol=1e-6)


@every_strategy
def test_the_order_of_the_updates_does_not_matter(name):
    draw = np.random.default_rng(9)
    strategy, weights = strategy_named(name), draw_arrays(draw)
    updates = draw_updates(draw)
    assert largest_difference(aggregate(strategy, weights, updates), aggregate(strategy, weights, updates[::-1])) < 1e-6


@every_average
def test_equal_updates_are_their_own_mean(name):
    draw = np.random.default_rng(1)
    weights, delta = draw_arrays(draw), draw_arrays(draw, "ner")
    updates = [Update(f"s{i}", "ner", n, delta, METRICS) for i, n in enumerate((1, 20, 300))]
    alone = aggregate(strategy_named(name), weights, updates[:1])
    assert largest_difference(aggregate(strategy_named(name), weights, updates), alone) < 1e-6


@every_strategy
@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.0, 1e-20, 1.0, 1e15]), rounds=st.integers(1, 4))
def test_weights_stay_finite_and_keep_names_shapes_and_dtypes(name, seed, scale, rounds):
    draw = np.random.default_rng(seed)
    strategy, weights = strategy_named(name), draw_arrays(draw)
    state = strategy.start(weights)
    for _ in range(rounds):
        updates = draw_updates(draw, scale=scale)
        about = round_of(updates, {"finance": 0.3, "ner": 2.0})
        weights, state = strategy.aggregate(weights, iter(updates), state, about)
    assert {n: (v.shape, v.dtype) for n, v in weights.items()} == {n: (s, np.float32) for n, s in SHAPES.items()}
    assert all(np.isfinite(value).all() for value in weights.values())


@every_strategy
def test_aggregating_changes_nothing_that_it_was_given(name):
    draw = np.random.default_rng(2)
    strategy, weights, updates = strategy_named(name), draw_arrays(draw), draw_updates(draw)
    state = strategy.start(weights)
    given_before = copy.deepcopy((weights, updates, state))
    first = strategy.aggregate(weights, iter(updates), state, round_of(updates, {"ner": 2.0}))
    second = strategy.aggregate(weights, iter(updates), state, round_of(updates, {"ner": 2.0}))
    assert largest_difference(first[0], second[0]) == 0  # pure: no memory but the state
    assert largest_difference(weights, given_before[0]) == 0
    for old, new in zip(given_before[1], updates, strict=True):
        assert largest_difference(old.delta, new.delta) == 0
    assert state.keys() == given_before[2].keys()


@every_strategy
def test_the_state_survives_a_checkpoint(name, tmp_path):
    """Two rounds on one object, against a round, a file, and a round from the file: equal to the bit."""
    draw = np.random.default_rng(3)
    strategy, weights = strategy_named(name), draw_arrays(draw)
    first, second = draw_updates(draw), draw_updates(draw)
    weights, state = strategy.aggregate(weights, iter(first), strategy.start(weights), round_of(first))
    save_checkpoint(tmp_path / "state.safetensors", Checkpoint(weights, state, weights))
    loaded = load_checkpoint(tmp_path / "state.safetensors")
    assert loaded is not None
    straight, _ = strategy.aggregate(weights, iter(second), state, round_of(second, number=2))
    resumed, _ = strategy_named(name).aggregate(loaded.weights, iter(second), loaded.state, round_of(second, number=2))
    assert largest_difference(straight, resumed) == 0


@every_strategy
def test_the_site_half_keeps_shapes_and_is_the_gradient_at_the_start(name):
    """At theta = received no strategy without a state may bend the gradient; it may never change its arguments."""
    draw = torch.Generator().manual_seed(0)
    theta, grad = torch.randn(3, 7, generator=draw), torch.randn(3, 7, generator=draw)
    kept = theta.clone(), grad.clone()
    strategy, received = strategy_named(name), theta.clone()
    keeps = {word: received.clone() if word in MODELS else torch.zeros_like(theta) for word in strategy.keeps}
    rows = SiteRows(received, keeps, {word: torch.zeros_like(theta) for word in strategy.sends})
    direction = strategy.correct(theta, grad, received, rows)
    assert direction.shape == grad.shape
    assert torch.equal(direction, grad)
    assert torch.equal(theta, kept[0])
    assert torch.equal(grad, kept[1])


def test_the_proximal_gradient_is_mu_times_the_way_gone():
    """mu (w - w0), by hand: 0.5 * ((3, -1) - (1, 1)) = (1, -1)."""
    theta, received, grad = torch.tensor([[3.0, -1.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[10.0, 20.0]])
    direction = strategy_named("fedprox", proximal_mu=0.5).correct(theta, grad, received, SiteRows(received))
    assert direction.tolist() == [[11.0, 19.0]]


@every_strategy
def test_strategies_are_frozen_and_know_the_server_learning_rate(name):
    strategy = strategy_named(name, server_learning_rate=0.5)
    assert strategy.server_learning_rate == 0.5
    with pytest.raises(dataclasses.FrozenInstanceError):
        strategy.server_learning_rate = 1.0  # type: ignore[misc]


def test_fedprox_is_told_its_mu_and_fedavg_has_none():
    assert strategy_named("fedprox", proximal_mu=0.3).proximal_mu == 0.3
    with pytest.raises(ConfigError) as caught:
        make_strategy(StrategyConfig.model_validate({"name": "fedavg", "proximal-mu": 0.3}))
    assert 'strategy.proximal-mu: strategy "fedavg" has no such key.' in str(caught.value)
    assert "its keys: server-learning-rate" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("strategy.name=fedporx", 'unknown strategy "fedporx". did you mean "fedprox"?'),
        ("strategy.proximal-my=1", 'strategy "fedprox" has no such key. did you mean "proximal-mu"?'),
        ("strategy.proximal-mu=much", "must be a number, got 'much'"),
        ("strategy.proximal-mu=true", "must be a number, got True"),
        ("strategy.proximal-mu=-1", "must be a finite number, at least 0, got -1"),
    ],
)
def test_a_wrong_strategy_table_is_refused_with_its_place(override, what):
    with pytest.raises(ConfigError) as caught:
        load_config({"strategy": {"name": "fedprox"}}, [override], (check_strategy,))
    assert what in str(caught.value)
    assert f"command line, {override.partition('=')[0]}" in str(caught.value)


def test_what_a_strategy_brings_gives_way_to_what_the_user_sets_and_is_kept_once_it_is_written():
    """The server-learning-rate of FedAdam is 0.01, unless another is given; patterns of a user go first."""
    adam = prepared(load_config({"strategy": {"name": "fedadam"}}))
    assert adam.strategy.server_learning_rate == 0.01
    assert prepared(adam) == adam
    own = prepared(load_config({"strategy": {"name": "fedadam", "server-learning-rate": 1.0}}))
    assert prepared(own).strategy.server_learning_rate == 1.0
    per = prepared(load_config({"strategy": {"name": "fedper"}, "sharing": {"head.*": "domain"}}))
    assert per.sharing == {"head.*": "domain"}
    assert prepared(load_config({"strategy": {"name": "fedper"}})).sharing == {"head.*": "private"}
    assert prepared(load_config({"strategy": {"name": "dual-lora"}})).body.domain_lora_rank == 8
    assert prepared(load_config({})) == load_config({})
