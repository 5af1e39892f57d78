"""What rules do at their edges, by hand: each of these lines could be broken without another test noticing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy_helpers import aggregate, round_of, strategy_named

from fedfm.config import load_config
from fedfm.strategies import Round, Update
from fedfm.strategies.base import registered_shares
from fedfm.strategies.domain_weights import weigh
from fedfm.strategies.hetlora import _alive, _size
from fedfm.strategies.lora import mean_products, pairs_of
from fedfm.strategies.transforms import chain, clip, sign, top_k

NOTHING = {"shared/x": np.zeros(1)}


def one(site: str, domain: str, examples: int, value: list[float], **metrics: float) -> Update:
    told = {"loss": 1.0, "steps": 1.0, "start-loss": 1.0} | metrics
    return Update(site, domain, examples, {"shared/x": np.array(value, float)}, told)


def losing(site: str, domain: str, loss: float, examples: int = 1) -> Update:
    return one(site, domain, examples, [0.0], **{"start-loss": loss})


def test_shares_of_all_registered_sites_go_by_domain_weights_too():
    """a weighs 3 of 4; of its four examples a2 has three: 3/4 * 3/4. b weighs 1 of 4, all of it b1's."""
    sites, examples = {"a1": "a", "a2": "a", "b1": "b"}, {"a1": 1, "a2": 3, "b1": 5}
    share = registered_shares(Round(sites=sites, examples=examples, domain_weights={"a": 3.0}))
    assert share(one("a2", "a", 3, [0]), "shared/x") == pytest.approx(9 / 16)
    assert share(one("b1", "b", 5, [0]), "shared/x") == pytest.approx(1 / 4)


# ---- conflicts between domains ---------------------------------------------------------------------------------------


def pcgrad_by_hand(gradients: np.ndarray, number: int) -> np.ndarray:
    """Yu et al. 2020, algorithm 1: each gradient is turned away from the others, one after another."""
    draw, turned = np.random.default_rng([0, number, *b"pcgrad"]), []
    for d in range(3):
        v = gradients[d].copy()
        for e in draw.permutation(3):
            if e != d and v @ gradients[e] < 0:
                v = v - (v @ gradients[e]) / (gradients[e] @ gradients[e]) * gradients[e]
        turned.append(v)
    return np.mean(turned, axis=0)


def test_pcgrad_goes_on_with_what_it_has_turned_in_an_order_of_each_round():
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0], [-1.0, -2.0]])
    found = [strategy_named("pcgrad").combine(gradients, Round(number)) for number in range(1, 9)]
    np.testing.assert_allclose(found, [pcgrad_by_hand(gradients, number) for number in range(1, 9)])
    assert len({tuple(row.round(9)) for row in found}) > 1


def test_mgda_gives_normalised_gradients_their_mean_length():
    """Norms 3 and 1: the mean 2 times (1/2, 1/2), the point of least norm between the unit vectors."""
    rows = np.array([[3.0, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(strategy_named("mgda", normalise=True).combine(rows, Round()), [1.0, 1.0])


# ---- robust rules ----------------------------------------------------------------------------------------------------


def test_krum_judges_shared_tensors_and_heads_apart():
    rows = 0.01 * np.random.default_rng(0).standard_normal((5, 3))
    heads = [np.array([10.0 * k**2, 0, 0]) for k in range(5)]
    both = [Update(f"s{k}", "d", 1, {"shared/x": rows[k], "d/h": heads[k]}) for k in range(5)]
    alone = [Update(update.site, "d", 1, {"shared/x": update.delta["shared/x"]}) for update in both]
    rule, zero = strategy_named("krum", byzantine=1), np.zeros(3)
    found = aggregate(rule, {"shared/x": zero, "d/h": zero}, both)
    assert np.array_equal(found["shared/x"], aggregate(rule, {"shared/x": zero}, alone)["shared/x"])


def test_multi_krum_keeps_all_but_the_attackers_unless_told():
    updates = [one(f"s{k}", "d", 1, [value]) for k, value in enumerate((0.0, 1.0, 2.0, 3.0, 100.0))]
    assert aggregate(strategy_named("multi-krum", byzantine=1), NOTHING, updates)["shared/x"][0] == 1.5


def test_a_group_of_just_enough_sites_needs_no_advice():
    config = load_config({"strategy": {"name": "krum"}}, ["domains.ner.sites=5"])  # n >= 2 f + 3
    said = strategy_named("krum", byzantine=1).advice(config)
    assert said
    assert not any("the ner tensors" in sentence for sentence in said)


# ---- fairness and domain weights -------------------------------------------------------------------------------------


def afl_state(rule, rounds: list[list[Update]]) -> dict:
    sites = {"a1": "a", "a2": "a", "b1": "b"}
    weights, state = NOTHING, rule.start(NOTHING)
    for number, updates in enumerate(rounds, 1):
        about = Round(number, 0, sites, dict.fromkeys(sites, 1))
        weights, state = rule.aggregate(weights, iter(updates), state, about)
    return state


def test_afl_remembers_the_first_loss_of_a_domain_that_was_away():
    rounds = [
        [losing("a1", "a", 2.0), losing("b1", "b", 2.0)], [losing("a1", "a", 2.0)],
        [losing("a1", "a", 2.0), losing("b1", "b", 1.0)],
    ]  # fmt: skip
    assert afl_state(strategy_named("afl", ascent_rate=0.1), rounds)["first"]["b"] == 2.0


def test_afl_takes_the_loss_of_a_domain_by_examples_and_leaves_an_absent_one():
    first = afl_state(strategy_named("afl"), [[losing("a1", "a", 1.0), losing("a2", "a", 5.0, examples=3)]])["first"]
    assert first["a"] == pytest.approx(4.0)
    mixture = afl_state(strategy_named("afl", ascent_rate=0.1), [[losing("a1", "a", 1.0)]])["mixture"]
    assert mixture == pytest.approx({"a": 0.55, "b": 0.45})  # (0.5 + 0.1, 0.5) on the simplex


def test_a_loss_of_zero_leaves_q_fedavg_finite():
    found = aggregate(strategy_named("q-fedavg", q=0.5), NOTHING, [one("s", "d", 1, [1.0], **{"start-loss": 0.0})])
    assert np.isfinite(found["shared/x"]).all()


def test_policies_of_domain_weights_at_their_limits():
    _, state = weigh("loss-adaptive", {}, {"a": 1, "b": 1}, {"a": 2.0, "b": 2.0}, {})
    _, state = weigh("loss-adaptive", {}, {"a": 1}, {"a": 1.0}, state)
    assert state["last"] == {"a": 0.5, "b": 1.0}  # b was away
    _, state = weigh("loss-adaptive", {}, {"a": 1}, {"a": 0.0}, {})
    assert np.isfinite(weigh("loss-adaptive", {}, {"a": 1}, {"a": 1.0}, state)[0]["a"])
    state = {"first": {"a": 1.0}}
    for _ in range(100):
        chosen, state = weigh("uncertainty", {}, {"a": 1}, {"a": 0.0}, state)
    assert chosen["a"] == pytest.approx(np.exp(5.0))


# ---- clusters and personal models ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "settings", "number", "models"),
    [((1.0, -1.0), {"after": 2}, 2, 2), ((1.0, 1.0, 1.0, -3.0), {"after": 1, "smallest": 2}, 1, 1)],
    ids=["from that round on", "no part smaller than asked"],
)
def test_when_cfl_splits(values, settings, number, models):
    updates = [one(f"s{k}", "d", 1, [value]) for k, value in enumerate(values)]
    rule = strategy_named("cfl", **settings)
    _, state = rule.aggregate(NOTHING, iter(updates), rule.start(NOTHING), round_of(updates, number=number))
    assert len(state["models"]) == models


def test_ifca_starts_tensors_of_one_shape_apart():
    model = strategy_named("ifca").start({"shared/x": np.zeros(4), "shared/y": np.zeros(4)})["cluster-1"]
    assert not np.array_equal(model["shared/x"], model["shared/y"])


def test_pfedme_never_moves_its_anchor_past_the_personal_model():
    anchor, theta = torch.zeros(1, 1), torch.ones(1, 1)
    strategy_named("pfedme", envelope=100.0)._follow(anchor, theta, torch.tensor([0.5]))
    assert anchor.item() == 1.0


# ---- LoRA ------------------------------------------------------------------------------------------------------------


def flora(number: int) -> dict[str, np.ndarray]:
    weights = {f"shared/{layer}.lora_A": np.ones((2, 3)) for layer in "pq"}
    weights |= {f"shared/{layer}.lora_B": np.ones((4, 2)) for layer in "pq"}
    rule = strategy_named("flora")
    weights |= rule.more_weights(weights)
    delta = {name: np.ones_like(value) for name, value in weights.items() if not name.startswith("merged")}
    updates = [Update("s", "d", 1, delta)]
    return rule.aggregate(weights, iter(updates), {}, round_of(updates, number=number))[0]


def test_flora_draws_each_layer_anew_in_each_round():
    now, later = flora(1), flora(2)
    assert not np.array_equal(now["shared/p.lora_A"], now["shared/q.lora_A"])
    assert not np.array_equal(now["shared/p.lora_A"], later["shared/p.lora_A"])


def test_products_of_a_domain_are_those_of_its_own_sites():
    weights = {"shared/q.lora_A": np.eye(2), "a/q.lora_B": np.zeros((2, 2)), "b/q.lora_B": np.zeros((2, 2))}
    still = {"shared/q.lora_A": np.zeros((2, 2))}
    updates = [
        Update("a1", "a", 1, still | {"a/q.lora_B": np.eye(2)}),
        Update("b1", "b", 1, still | {"b/q.lora_B": 3 * np.eye(2)}),
    ]
    found = {pair.b: product.tolist() for pair, product in mean_products(weights, updates, {}).items()}
    assert found == {"a/q.lora_B": np.eye(2).tolist(), "b/q.lora_B": (3 * np.eye(2)).tolist()}


def test_hetlora_measures_a_site_by_its_own_pairs_and_prunes_what_is_dead():
    weights = {f"{group}/q.lora_{factor}": np.ones((1, 1)) for group in "ab" for factor in "AB"}
    update = Update("s", "a", 1, {"a/q.lora_A": np.zeros((1, 1)), "a/q.lora_B": np.zeros((1, 1))})
    assert _size(weights, update, pairs_of(weights)) == 1.0
    a, b = _alive(np.array([[0.0, 0.0], [1.0, 1.0]]), np.array([[2.0, 1.0]]), np.ones((2, 2)))
    assert a.tolist() == [[0.0, 0.0], [1.0, 1.0]]
    assert b.tolist() == [[2.0, 1.0]]


# ---- transforms ------------------------------------------------------------------------------------------------------


def test_a_chain_has_feedback_where_all_of_it_has():
    assert chain(sign()).feedback
    assert not chain(clip(1.0), sign()).feedback


def test_top_k_sends_its_share_to_the_entry():
    sent = top_k(0.07).encode({"a": np.arange(1.0, 101.0)}, np.random.default_rng(0))
    assert len(sent["#indices"]) == 7
