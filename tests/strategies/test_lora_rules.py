"""LoRA-aware rules: the product that the server ends with, against the mean of the sites' products; float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_helpers import round_of, strategy_named

from fedfm.arrays import Arrays
from fedfm.config import load_config
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.models.site_model import build_model, start_weights
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import Update, check_strategy
from fedfm.training.matrix import ClientMatrix
from fedfm.training.trained import load_model

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import TEXTS, WORDS, tiny

OUT, IN, RANK = 7, 9, 2
A, B, MERGED = "shared/body.q.lora_A", "shared/body.q.lora_B", "merged/body.q.weight"
EXACT = ("flora", "fedex-lora", "ffa-lora")
RULES = (*EXACT, "fedit", "rolora", "flexlora", "hetlora")


def start(strategy, seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    weights = {A: draw.standard_normal((RANK, IN)), B: draw.standard_normal((OUT, RANK))}
    return weights | strategy.more_weights(weights)


def updates_for(strategy, weights: Arrays, round: int, count: int = 4, seed: int = 1) -> list[Update]:
    draw = np.random.default_rng([seed, round])
    sent = [name for name in (A, B) if strategy.shares(name, round)]
    return [
        Update(f"s{k}", "ab"[k % 2], 10 + 7 * k, {name: draw.standard_normal(weights[name].shape) for name in sent})
        for k in range(count)
    ]


def site_products(weights: Arrays, updates: list[Update]) -> np.ndarray:
    """sum_k p_k B_k A_k, by hand: domains count alike, sites by examples."""
    sizes = {d: sum(u.num_examples for u in updates if u.domain == d) for d in {u.domain for u in updates}}
    return sum(
        u.num_examples
        / sizes[u.domain]
        / len(sizes)
        * (weights[B] + u.delta.get(B, 0))
        @ (weights[A] + u.delta.get(A, 0))
        for u in updates
    )


def product(weights: Arrays) -> np.ndarray:
    return weights[B] @ weights[A] + weights.get(MERGED, 0)


@pytest.mark.parametrize("name", RULES)
def test_what_is_exact_is_exact_and_the_error_is_told(name):
    strategy = strategy_named(name)
    weights = start(strategy)
    for number in (1, 2, 3, 4):
        updates = updates_for(strategy, weights, number)
        wanted = site_products(weights, updates)
        new, state = strategy.aggregate(weights, iter(updates), {}, round_of(updates, number=number))
        gap = np.linalg.norm(wanted - (product(new) - weights.get(MERGED, 0))) / np.linalg.norm(wanted)
        assert state["told"]["aggregation_error"] == pytest.approx(gap, abs=1e-12)
        if name in (*EXACT, "rolora"):
            assert gap < 1e-12
        else:
            assert gap > 1e-3
        weights = new


def test_the_error_of_fedit_is_the_covariance_of_the_factors():
    """sum p (B_k - Bbar)(A_k - Abar), with the shares of the two-level mean."""
    strategy = strategy_named("fedit")
    weights = start(strategy)
    updates = updates_for(strategy, weights, 1)
    new, _ = strategy.aggregate(weights, iter(updates), {}, round_of(updates))
    sizes = {d: sum(u.num_examples for u in updates if u.domain == d) for d in "ab"}
    spread = sum(
        u.num_examples / sizes[u.domain] / 2 * (weights[B] + u.delta[B] - new[B]) @ (weights[A] + u.delta[A] - new[A])
        for u in updates
    )
    assert np.abs(site_products(weights, updates) - product(new) - spread).max() < 1e-12


def test_flexlora_is_the_best_of_its_rank():
    strategy = strategy_named("flexlora")
    weights = start(strategy)
    updates = updates_for(strategy, weights, 1)
    new, _ = strategy.aggregate(weights, iter(updates), {}, round_of(updates))
    wanted = site_products(weights, updates)
    values = np.linalg.svd(wanted, compute_uv=False)
    gap = np.linalg.norm(wanted - product(new))
    assert gap == pytest.approx(np.sqrt(np.square(values[RANK:]).sum()), rel=1e-10)
    draw = np.random.default_rng(3)
    for _ in range(200):
        near = (new[B] + 0.05 * draw.standard_normal(new[B].shape)) @ (
            new[A] + 0.05 * draw.standard_normal(new[A].shape)
        )
        assert np.linalg.norm(wanted - near) > gap


@pytest.mark.parametrize("name", RULES)
def test_of_one_site_every_rule_makes_that_sites_product(name):
    strategy = strategy_named(name)
    weights = start(strategy)
    updates = updates_for(strategy, weights, 1, count=1)
    new, state = strategy.aggregate(weights, iter(updates), {}, round_of(updates))
    assert np.abs(site_products(weights, updates) - (product(new) - weights.get(MERGED, 0))).max() < 1e-12
    assert state["told"]["aggregation_error"] < 1e-12


def test_hetlora_weighs_by_the_size_of_the_product():
    strategy, weights = strategy_named("hetlora"), {A: np.ones((1, 1)), B: np.zeros((1, 1))}
    updates = [Update(f"s{k}", "d", 10, {A: np.zeros((1, 1)), B: np.full((1, 1), v)}) for k, v in enumerate((1.0, 3.0))]
    new, _ = strategy.aggregate(weights, iter(updates), {}, round_of(updates))
    assert new[B][0, 0] == pytest.approx((1 * 1 + 3 * 3) / 4)


def test_a_merged_model_is_the_model_over_the_changed_weight():
    """One linear layer with something merged into it, against the same body with that weight: equal logits, 1e-12."""
    config = load_config({}, ["engine.dtype=float64", "body.layers=1", "body.lora-rank=2"])
    card = DomainCard("finance", "text-classification", ("a", "b"))
    model = build_model(config, card)
    matrix = ClientMatrix(model)
    matrix.load(0, start_weights(model, 0))
    ids = {"input_ids": torch.tensor([[5, 9, 2, 7]])}
    name = next(n for n in matrix.columns if n.endswith("query.lora_A")).removesuffix(".lora_A")
    module = model.rows()[name]
    before = model(ids).detach()
    added = np.random.default_rng(0).standard_normal((module.base.out_features, module.base.in_features))
    model.merge({f"merged/{name}.weight": added})
    merged = model(ids).detach()
    own = module.base.weight
    module.merge(None)
    module.base.weight = torch.nn.Parameter(own + module.scale * torch.from_numpy(added), requires_grad=False)
    assert (merged - model(ids)).abs().max() < 1e-12
    module.base.weight = own
    assert torch.equal(model(ids), before)  # and without it is as it was
    assert (merged - before).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["flora", "fedex-lora"])
def test_a_run_with_merged_parts_predicts_as_it_was_scored(name, tmp_path):
    config = tiny(
        tmp_path, f"strategy.name={name}", "rounds=2", "engine.dtype=float64", finance={**TEXTS, "sites": 2}, ner=WORDS
    )
    folder = RunFolder.create(config)
    from fedfm.engines.local import LocalGrid

    RoundLoop(LocalGrid(app), config, folder).run()
    errors = folder.rounds["aggregation_error"].tolist()[1:]
    assert max(errors) < 1e-12
    model = load_model(folder.path, "finance")
    assert any(value.any() for value in model.merged.values())
    from fedfm.domains import load_site
    from fedfm.training.metrics import PRIMARY

    right = total = 0
    for site in ("finance-1", "finance-2"):
        test = load_site(config, "finance", site).test
        found = model.predict(test.inputs)
        right += sum(model.card.labels.index(label) == truth for label, truth in zip(found, test.labels, strict=True))
        total += len(test)
    assert folder.info["final"]["finance"]["accuracy"] == pytest.approx(right / total)
    assert PRIMARY["text-classification"] == "macro_f1"


def test_ffa_lora_sends_no_a_and_rolora_half_of_the_factors_up(tmp_path):
    from federation_helpers import Recorder, train_federation

    recorder = Recorder()
    train_federation(tiny(tmp_path, "strategy.name=ffa-lora", finance={**TEXTS, "sites": 2}), recorder)
    for kind in ("train", "evaluate"):
        assert not any(name.endswith("lora_A") for _, down, _ in recorder.of(kind) for name in down)
    turns = Recorder()
    train_federation(tiny(tmp_path, "strategy.name=rolora", "rounds=2", finance={**TEXTS, "sites": 2}), turns)
    for order, down, up in turns.of("train"):
        assert {name.rpartition("lora_")[2] for name in down if "lora_" in name} == {"A", "B"}
        assert {name.rpartition("lora_")[2] for name in up if "lora_" in name} == {"B" if order.round == 1 else "A"}


@pytest.mark.parametrize("name", [*RULES, "fedsa-lora"])
def test_without_lora_they_are_refused(name):
    with pytest.raises(ConfigError, match=f'{name} averages LoRA updates, but body.tuning = "head" trains none'):
        load_config({"strategy": {"name": name}}, ["body.tuning=head"], (check_strategy,))


def test_dual_lora_trains_both_pairs_and_a_domain_touches_its_own_alone(tmp_path):
    from federation_helpers import Recorder, train_federation

    recorder = Recorder()
    config = tiny(tmp_path, "strategy.name=dual-lora", "rounds=2", "engine.dtype=float64", finance=TEXTS, ner=WORDS)
    assert config.body.domain_lora_rank == 8
    done = train_federation(config, recorder)
    names = {name.rpartition(".")[2] for name in done.weights if "lora_" in name or "domain_" in name}
    assert names == {"lora_A", "lora_B", "domain_A", "domain_B"}
    for order, down, up in recorder.of("train"):
        groups = {name.partition("/")[0] for name in (*down, *up) if "domain_" in name}
        assert groups == {order.card.domain}
    for end in (".lora_B", ".domain_B"):  # both begin at zero, and both have moved in every domain
        assert all(value.any() for name, value in done.weights.items() if name.endswith(end))
