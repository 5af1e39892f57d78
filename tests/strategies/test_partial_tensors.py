"""Tensors that only some domains have, and domains that count for nothing: by hand, every change being +1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from strategy_helpers import round_of, strategy_named

from fedfm.strategies import Update

ONE = np.ones(1)
METRICS = {"steps": 4.0, "start-loss": 1.0, "loss": 1.0}
WEIGHTS = {name: np.zeros(1) for name in ("shared/layer", "shared/embedding", "img/head", "txt/head")}
HOLDS = {"img": ["shared/layer", "img/head"], "txt": ["shared/layer", "shared/embedding", "txt/head"]}


def updates() -> list[Update]:
    """A site of images and one of texts, of unequal sizes; only texts pass the shared embedding."""
    sizes = {"img": 3, "txt": 1}
    return [
        Update(f"{domain}-1", domain, sizes[domain], dict.fromkeys(HOLDS[domain], ONE), METRICS,
               {"control": dict.fromkeys(HOLDS[domain], ONE)})
        for domain in HOLDS
    ]  # fmt: skip


def after(name: str, **own) -> tuple[dict, dict]:
    strategy, sent = strategy_named(name, **own), updates()
    about = replace(round_of(sent), holds=HOLDS)
    new, state = strategy.aggregate(WEIGHTS, iter(sent), strategy.start(WEIGHTS), about)
    return {tensor: float(value[0]) for tensor, value in new.items()}, state


@pytest.mark.parametrize(("name", "own"), [("fedavg", {}), ("fednova", {}), ("q-fedavg", {"q": 0.0}), ("cfl", {})])
def test_a_tensor_of_one_domain_takes_its_whole_step(name, own):
    assert after(name, **own)[0] == pytest.approx(dict.fromkeys(WEIGHTS, 1.0))


def test_shares_of_all_registered_sites_sum_to_one_for_every_tensor():
    """SCAFFOLD: c = sum_k q_k (c_k' - c_k). FedDyn: h = -a mean_k Delta_k, so that the step is the mean twice."""
    control = after("scaffold")[1]["control"]
    assert {name: float(value[0]) for name, value in control.items()} == pytest.approx(dict.fromkeys(WEIGHTS, 1.0))
    assert after("feddyn", alpha=0.1)[0] == pytest.approx(dict.fromkeys(WEIGHTS, 2.0))


@pytest.mark.parametrize("over", ["domains", "sites"])
def test_afl_trains_the_head_of_a_domain_whose_weight_is_zero(over):
    strategy, sent = strategy_named("afl", over=over), updates()
    easy, hard = ("img", "txt") if over == "domains" else ("img-1", "txt-1")
    state = {"mixture": {easy: 0.0, hard: 1.0}, "first": {easy: 1.0, hard: 1.0}}
    new, _ = strategy.aggregate(WEIGHTS, iter(sent), state, round_of(sent))
    assert all(value[0] == pytest.approx(1.0) for value in new.values())


@pytest.mark.parametrize("name", ["ifca", "cfl"])
def test_the_global_model_of_clusters_has_of_each_head_what_its_own_sites_trained(name):
    """Images choose the first model, texts the second: the second's copy of the head of images is nobody's."""
    strategy, sent = strategy_named(name), updates()
    models = {key: dict(WEIGHTS) for key in (strategy.candidates if name == "ifca" else ("0", "1"))}
    first, second = models
    members = {"img-1": first, "txt-1": second}
    sent = [replace(u, metrics=METRICS | {"choice": float(u.domain == "txt")}) for u in sent]
    state = models | {"chosen": {}} if name == "ifca" else {"models": models, "members": members, "scale": 1.0}
    new, _ = strategy.aggregate(WEIGHTS, iter(sent), state, replace(round_of(sent), holds=HOLDS))
    assert (new["img/head"][0], new["txt/head"][0], new["shared/embedding"][0]) == pytest.approx((1.0, 1.0, 1.0))


def test_norm_bound_takes_the_usual_size_from_those_that_moved():
    still = [Update(f"s{n}", "txt", 1, {"shared/layer": value * ONE}) for n, value in enumerate((0.0, 0.0, 3.0))]
    new, _ = strategy_named("norm-bound").aggregate({"shared/layer": 0 * ONE}, iter(still), {}, round_of(still))
    assert new["shared/layer"][0] == pytest.approx(1.0)


def test_rolora_with_b_of_a_domain_and_nothing_else_of_it_sent_has_products():
    a, b = "shared/body.x.lora_A", "txt/body.x.lora_B"
    weights = {a: np.ones((1, 2)), b: np.ones((2, 1))}
    sent = [Update(f"txt-{n}", "txt", n + 1, {a: np.ones((1, 2))}) for n in range(2)]
    strategy = strategy_named("rolora")
    new, state = strategy.aggregate(weights, iter(sent), strategy.start(weights), round_of(sent, number=2))
    assert new[a] == pytest.approx(2 * np.ones((1, 2)))
    assert state["told"]["aggregation_error"] == pytest.approx(0.0, abs=1e-12)
