"""Sites whose LoRA have different ranks under one server (FlexLoRA, FLoRA, HetLoRA); float64."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from strategy_helpers import round_of, strategy_named

from fedfm.config import load_config
from fedfm.domains.card import DomainCard
from fedfm.engines.local import LocalGrid
from fedfm.errors import ConfigError
from fedfm.federation.rounds import RoundLoop
from fedfm.federation.workbench import Workbench
from fedfm.models.site_model import start_weights
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import STRATEGIES, Update, check_strategy
from fedfm.strategies.lora import from_rank, pairs_of, to_rank

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import TEXTS, Recorder, outcome, tiny, train_federation

pytestmark = pytest.mark.usefixtures("small_data")

MIXING = ("flexlora", "flora", "hetlora")
SITES = [{"name": "big"}, {"name": "mid", "lora-rank": 3}, {"name": "small", "lora-rank": 1}]
FEDERATION = {**TEXTS, "site": SITES}


def federation(tmp_path, *overrides: str):
    return tiny(tmp_path, "rounds=2", "engine.dtype=float64", "body.lora-rank=4", *overrides, finance=FEDERATION)


@pytest.mark.parametrize("rank", [1, 3])
def test_a_site_of_a_smaller_rank_has_the_model_with_zeros_in_place_of_the_rest(rank):
    config = load_config({}, ["engine.dtype=float64", "body.layers=1", "body.lora-rank=4", "body.lora-alpha=12"])
    card = DomainCard("finance", "text-classification", ("a", "b"))
    whole, cut = Workbench(config, card, 1), Workbench(config, card, 1, rank)
    draw = np.random.default_rng(rank)
    weights = {name: draw.standard_normal(v.shape) for name, v in start_weights(whole.model, 0).items()}
    small = to_rank(weights, rank)
    padded = from_rank({name: value * 0 for name, value in small.items()}, weights, rank)
    cut.matrix.load(0, small)
    whole.matrix.load(0, {name: weights[name] + padded[name] for name in weights})
    ids = {"input_ids": torch.tensor([[5, 9, 2, 7]])}
    assert (cut.model(ids) - whole.model(ids)).abs().max() < 1e-12
    whole.matrix.load(0, weights)
    assert (cut.model(ids) - whole.model(ids)).abs().max() > 1e-3


@pytest.mark.parametrize("name", MIXING)
def test_what_crosses_the_wire_has_the_site_s_rank(name, tmp_path):
    recorder = Recorder()
    train_federation(federation(tmp_path, f"strategy.name={name}"), recorder)
    ranks = {"big": 4, "mid": 3, "small": 1}
    for order, down, up in recorder.of("train"):
        for tensors in (down, up):
            assert {np.shape(v)[-2] for n, v in tensors.items() if n.endswith("lora_A")} == {ranks[order.sites[0]]}
            assert {np.shape(v)[-1] for n, v in tensors.items() if n.endswith("lora_B")} == {ranks[order.sites[0]]}
    for _, down, _ in recorder.of("evaluate"):  # the server's model, whole
        assert {len(v) for n, v in down.items() if n.endswith("lora_A")} == {4}


def trained_factors(seen, pair) -> list[tuple[np.ndarray, np.ndarray]]:
    """(B_k, A_k) as each site ended with them, of its own rank."""
    found = []
    for _, down, up in seen:
        b, a = (down[name] + up[name].reshape(down[name].shape) for name in (pair.b, pair.a))
        found.append((b, a))
    return found


@pytest.mark.parametrize("name", ["flexlora", "flora"])
def test_the_product_at_the_server_is_the_mean_of_the_sites_own(name, tmp_path):
    """All sites hold 12 training examples: the mean is the plain one. FLoRA is exact, FlexLoRA the best of rank 4."""
    recorder = Recorder()
    done = train_federation(federation(tmp_path, f"strategy.name={name}", "rounds=1"), recorder)
    for pair in pairs_of(done.weights):
        mean = sum(b @ a for b, a in trained_factors(recorder.of("train"), pair)) / 3
        made = done.weights[pair.b] @ done.weights[pair.a] + done.weights.get(pair.merged, 0)
        values = np.linalg.svd(mean, compute_uv=False)
        best = np.linalg.norm(values[4:]) if name == "flexlora" else 0.0
        assert np.linalg.norm(made - mean) == pytest.approx(best, abs=1e-12)


def test_hetlora_pads_with_zeros_and_weighs_by_the_size_of_the_products(tmp_path):
    recorder = Recorder()
    done = train_federation(federation(tmp_path, "strategy.name=hetlora", "rounds=1"), recorder)
    pairs = pairs_of(done.weights)
    of_pair = {pair: trained_factors(recorder.of("train"), pair) for pair in pairs}
    sizes = [np.sqrt(sum(np.linalg.norm(of_pair[p][k][0] @ of_pair[p][k][1]) ** 2 for p in pairs)) for k in range(3)]
    for pair in pairs:
        wanted = np.zeros(done.weights[pair.a].shape)
        for size, (_, a) in zip(sizes, of_pair[pair], strict=True):
            wanted[: len(a)] += size / sum(sizes) * a
        assert np.abs(done.weights[pair.a] - wanted).max() < 1e-12


@pytest.mark.parametrize("name", MIXING)
def test_sites_of_one_rank_train_at_once_and_end_as_alone(name, tmp_path):
    site = [*SITES, {"name": "tiny", "lora-rank": 1}]
    ends = []
    for at_once in (1, 4):
        base = federation(tmp_path / str(at_once), f"strategy.name={name}").to_dict()
        base["domains"]["finance"]["site"] = site
        base["engine"]["sites-at-once"] = at_once
        recorder = Recorder()
        folder = RunFolder.create(config := load_config(base))
        RoundLoop(LocalGrid(recorder), config, folder).run()
        ends.append(outcome(folder).weights)
        packs = {order.sites for order, *_ in recorder.of("train")}
    assert ("small", "tiny") in packs
    assert max(np.abs(ends[0][name] - ends[1][name]).max() for name in ends[0]) < 1e-10


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ["flexlora", "hetlora"])
def test_rounds_of_small_ranks_leave_the_rows_that_they_lack_able_to_learn(name, dtype):
    """Zero in A and in B has no gradient in either: such a row would be lost for good. The product is the rule's."""
    draw = np.random.default_rng(0)
    a, b = "shared/body.q.lora_A", "shared/body.q.lora_B"
    weights = {a: draw.standard_normal((4, 9)).astype(dtype), b: draw.standard_normal((7, 4)).astype(dtype)}
    strategy, rank, near = strategy_named(name), 1, 1e-12 if dtype == np.float64 else 1e-4
    for number in (1, 2):
        small = [to_rank({n: draw.standard_normal(v.shape).astype(dtype) for n, v in weights.items()}, rank)] * 2
        updates = [Update(f"s{k}", "d", 5, from_rank(delta, weights, rank)) for k, delta in enumerate(small)]
        products = [(weights[b] + u.delta[b]) @ (weights[a] + u.delta[a]) for u in updates]
        before = weights
        weights, _ = strategy.aggregate(weights, iter(updates), {}, round_of(updates, number=number))
        np.testing.assert_allclose(weights[b] @ weights[a], sum(products) / 2, atol=near)
        np.testing.assert_array_equal(weights[a][rank:], before[a][rank:])
        assert not weights[b][:, rank:].any()
        assert np.abs(weights[b][:, :rank]).min() > 1e-3 and {v.dtype for v in weights.values()} == {np.dtype(dtype)}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_other_strategy_refuses_different_ranks(name):
    data = {"strategy": {"name": name}, "body": {"lora-rank": 4}, "domains": {"finance": FEDERATION}}
    if name in MIXING:
        assert load_config(data, (), (check_strategy,)).ranks() == {"big": 4, "mid": 3, "small": 1}
        return
    with pytest.raises(ConfigError, match=f"different ranks of LoRA .mid: 3, the server: 4., but {name} averages"):
        load_config(data, (), (check_strategy,))


def test_ranks_that_no_lora_has_are_refused():
    data = {"strategy": {"name": "flora"}, "body": {"lora-rank": 2}, "domains": {"finance": FEDERATION}}
    with pytest.raises(ConfigError, match=r"site\[2\].lora-rank.*lora-rank = 3 is more than body.lora-rank = 2"):
        load_config(data)
    data["body"] = {"lora-rank": 4, "tuning": "head"}
    with pytest.raises(ConfigError, match=r'ranks of LoRA, but body.tuning = "head"'):
        load_config(data, (), (check_strategy,))
