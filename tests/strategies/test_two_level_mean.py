"""The mean of updates: numbers worked out by hand, and what the order of updates may change (nothing)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_helpers import aggregate, largest_difference

from fedfm.strategies import Update
from fedfm.strategies.base import domain_means, two_level_mean, two_level_shares
from fedfm.strategies.fedavg import FedAvg


def update(site: str, domain: str, examples: int, **tensors: float) -> Update:
    delta = {name.replace("__", "/"): np.array([value], np.float32) for name, value in tensors.items()}
    return Update(site, domain, examples, delta)


def test_examples_weigh_inside_a_domain_and_the_domain_weight_between_domains():
    """Golden, by hand.

    finance: (1 * 10 + 3 * 2) / (1 + 3) = 4.  medical, one site of 1000 examples: -2.
    w_finance = 2, w_medical = 1: (2 * 4 + 1 * -2) / 3 = 2.  The 1000 examples do not outvote the 4.
    """
    updates = [
        update("bank-1", "finance", 1, shared__a=10.0),
        update("bank-2", "finance", 3, shared__a=2.0),
        update("clinic", "medical", 1000, shared__a=-2.0),
    ]
    mean = two_level_mean(updates, {"finance": 2.0, "medical": 1.0})
    assert mean["shared/a"].tolist() == [2.0]
    equal = two_level_mean(updates, {"finance": 1.0, "medical": 1.0})
    assert equal["shared/a"].tolist() == [1.0]  # (4 - 2) / 2
    assert two_level_mean(updates, {})["shared/a"].tolist() == [1.0]  # a domain counts 1 unless told otherwise


def test_a_mean_runs_over_those_that_sent_the_tensor():
    """Golden, by hand.

    shared/a: finance (1 * 8 + 1 * 4) / 2 = 6, ner 3, weights 1 and 2: (6 + 2 * 3) / 3 = 4.
    shared/b is sent by bank-2 and tagger only: finance 5, ner 2: (5 + 2 * 2) / 3 = 3; bank-1 does not count as zero.
    shared/c is sent by bank-1 alone: 7, whatever the weights. A head is its own domain's: 9 and 1.
    """
    updates = [
        update("bank-1", "finance", 1, shared__a=8.0, shared__c=7.0, finance__head=9.0),
        update("bank-2", "finance", 1, shared__a=4.0, shared__b=5.0),
        update("tagger", "ner", 50, shared__a=3.0, shared__b=2.0, ner__head=1.0),
    ]
    mean = two_level_mean(updates, {"finance": 1.0, "ner": 2.0})
    expected = {"shared/a": 4.0, "shared/b": 3.0, "shared/c": 7.0, "finance/head": 9.0, "ner/head": 1.0}
    assert {name: value.item() for name, value in mean.items()} == expected


def test_a_domain_alone_is_its_own_mean_to_the_bit_unless_it_weighs_nothing():
    updates = [update("bank-1", "finance", 1, shared__a=0.3), update("bank-2", "finance", 2, shared__a=0.7)]
    (own,) = domain_means(updates).values()
    for weight in (1.0, 0.1, 3.0):
        assert np.array_equal(two_level_mean(updates, {"finance": weight})["shared/a"], own["shared/a"])
    assert two_level_mean(updates, {"finance": 0.0}) == {}
    assert two_level_mean([], {}) == {}


def test_a_tensor_that_nobody_sent_keeps_its_weight_to_the_bit():
    weights = {"shared/a": np.float32([0.1]), "medical/head": np.float32([0.3])}
    new = aggregate(FedAvg(), weights, [update("bank", "finance", 4, shared__a=1.0)])
    assert np.array_equal(new["medical/head"], weights["medical/head"])
    assert new["shared/a"].item() == pytest.approx(1.1)
    assert aggregate(FedAvg(), weights, []) == weights


@pytest.mark.parametrize("rate", [0.25, 1.0, 3.0])
def test_the_server_learning_rate_scales_the_mean_step(rate):
    """Mean step (1 * 2 + 3 * 6) / 4 = 5, from weight 1: 1 + 5 eta_s."""
    updates = [update("a", "d", 1, shared__a=2.0), update("b", "d", 3, shared__a=6.0)]
    new = aggregate(FedAvg(server_learning_rate=rate), {"shared/a": np.float32([1.0])}, updates)
    assert new["shared/a"].tolist() == [1.0 + 5.0 * rate]
    assert new["shared/a"].dtype == np.float32


def test_sums_are_wide_and_the_result_is_narrow():
    """10,000 sites send 0.1 in float32: summed in float32 the mean is off by 1e-3, in float64 it is exact."""
    updates = (update(f"s{i:05d}", "d", 1, shared__a=0.1) for i in range(10_000))
    mean = two_level_mean(updates, {})["shared/a"]
    assert mean.dtype == np.float64
    assert mean.item() == pytest.approx(float(np.float32(0.1)), abs=1e-13)


finite = st.floats(-1e3, 1e3, width=32)
some_updates = st.lists(
    st.tuples(st.sampled_from(["finance", "medical", "ner"]), st.integers(1, 10_000), finite), min_size=1, max_size=8
)


@settings(max_examples=50)
@given(rows=some_updates, seed=st.integers(0, 99))
def test_the_order_in_which_sites_come_does_not_matter_after_sorting(rows, seed):
    updates = [update(f"s{i}", domain, n, shared__a=value) for i, (domain, n, value) in enumerate(rows)]
    shuffled = [updates[i] for i in np.random.default_rng(seed).permutation(len(updates))]
    weights = {"shared/a": np.float64([0.5])}
    straight = aggregate(FedAvg(), weights, sorted(updates, key=lambda u: u.site))
    again = aggregate(FedAvg(), weights, sorted(shuffled, key=lambda u: u.site))
    assert np.array_equal(straight["shared/a"], again["shared/a"])
    assert largest_difference(aggregate(FedAvg(), weights, shuffled), straight) < 1e-9  # unsorted: rounding only


@settings(max_examples=50)
@given(rows=some_updates)
def test_a_mean_lies_between_what_was_sent(rows):
    updates = [update(f"s{i}", domain, n, shared__a=value) for i, (domain, n, value) in enumerate(rows)]
    mean = two_level_mean(updates, {"finance": 0.5, "medical": 7.0})["shared/a"].item()
    values = [value for *_, value in rows]
    assert min(values) - 1e-9 <= mean <= max(values) + 1e-9


def test_shares_are_those_of_each_tensor_and_sum_to_one():
    """a: both domains; b: of domain t alone, though its group is shared by all."""
    updates = [
        Update("i", "img", 3, {"shared/a": np.ones(1)}),
        Update("t", "txt", 1, {"shared/a": np.ones(1), "shared/b": np.ones(1)}),
    ]
    found = two_level_shares(updates, {})
    assert found == {"shared/a": {"i": 0.5, "t": 0.5}, "shared/b": {"t": 1.0}}
