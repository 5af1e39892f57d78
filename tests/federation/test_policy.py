"""What a site allows, rule by rule, and that the last look is at the tensors that are really in the message."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from federation_helpers import TEXTS, tiny
from site_helpers import settings_for

from fedfm.domains.card import DomainCard
from fedfm.federation import policy
from fedfm.federation.compression import ENCODED
from fedfm.federation.messages import Answer, Order, join_more

CARD = DomainCard("finance", "text-classification", ("a", "b"), None)
HEAD = {"finance/head.bias": np.zeros(2, np.float32)}
BOTH = HEAD | {"shared/layer.lora_A": np.zeros((2, 2), np.float32)}


def of_run(tmp_path, *overrides, **allow):
    config = tiny(tmp_path, *overrides, finance=TEXTS)
    return problems(policy.problems_of_run(settings_for(tmp_path, "finance-1", "finance", **allow), config))


def of_order(tmp_path, order=None, received=BOTH, released=0, **allow):
    config = tiny(tmp_path, finance=TEXTS)
    order = order or Order(("finance-1",), 1, CARD, "")
    settings = settings_for(tmp_path, "finance-1", "finance", **allow)
    return problems(policy.problems_of_order(settings, config, order, received, released))


def of_answer(tmp_path, leaving, received=BOTH, examples=10, released=0, split="", **allow):
    settings = settings_for(tmp_path, "finance-1", "finance", **allow)
    answer = Answer(("finance-1",), leaving, {"num-examples": [float(examples)]})
    order = Order(("finance-1",), 1, CARD, "", split=split)
    return problems(policy.problems_of_answer(settings, order, received, answer, released))


def problems(found):
    assert all(problem.what.startswith('site "finance-1" refuses: ') for problem in found)
    return [f"{p.where}: {p.what.partition('refuses: ')[2]}" for p in found]


def test_what_is_allowed_by_default(tmp_path):
    assert of_run(tmp_path) == []
    assert of_order(tmp_path) == []
    assert of_answer(tmp_path, BOTH) == []


@pytest.mark.parametrize(
    ("overrides", "allow", "said"),
    [
        (["strategy.name=fedprox"], {"strategies": ["fedavg"]}, 'strategy.name: it allows only fedavg, not "fedprox"'),
        (["body.tuning=full"], {}, 'body.tuning: it allows only head, layernorm, lora, not "full"'),
        (["rounds=101"], {}, "rounds: it allows at most 100 rounds, not 101"),
        (["strategy.name=centralised"], {}, "strategy.name: centralised pools the data of sites"),
        (["simulation.attack=nan", "simulation.attackers=1"], {}, "simulation.attack: it is a real site"),
        ([], {"require_noise": True}, "update: it sends only what is clipped and noised"),
        (["update.clip=1"], {"require_noise": True}, "update: it sends only what is clipped and noised"),
        (["update.noise=1"], {"require_noise": True}, "update: it sends only what is clipped and noised"),
        (
            ["update.clip=1", "update.noise=1", "strategy.name=scaffold"], {"require_noise": True},
            "strategy.name: scaffold also sends control, to which no noise is added",
        ),
    ],
)  # fmt: skip
def test_each_rule_of_a_run(tmp_path, overrides, allow, said):
    (problem,) = of_run(tmp_path, *overrides, **allow)
    assert problem.startswith(said)


def test_noise_that_is_there_is_enough(tmp_path):
    assert of_run(tmp_path, "update.clip=1", "update.noise=0.1", require_noise=True) == []


def test_all_that_is_wrong_is_said_at_once(tmp_path):
    found = of_run(tmp_path, "rounds=9", "body.tuning=full", strategies=["fedprox"], max_rounds=8)
    assert [problem.partition(":")[0] for problem in found] == ["strategy.name", "body.tuning", "rounds"]


def test_another_name_or_another_domain(tmp_path):
    config = tiny(tmp_path, finance=TEXTS, other=TEXTS)
    (unknown,) = policy.problems_of_run(settings_for(tmp_path, "finance-9", "finance"), config)
    assert 'no such site. did you mean "finance-2"?' in unknown.what
    (elsewhere,) = policy.problems_of_run(settings_for(tmp_path, "finance-1", "other"), config)
    assert 'a site of domain "other", and in the configuration of "finance"' in elsewhere.what


@pytest.mark.parametrize(
    ("order", "allow", "said"),
    [
        (Order(("finance-2",), 1, CARD, ""), {}, "order: the order is not for it alone: finance-2 of finance"),
        (Order(("finance-1", "finance-2"), 1, CARD, ""), {}, "order: the order is not for it alone"),
        (Order(("finance-1",), 1, replace(CARD, domain="ner"), ""), {}, "order: the order is not for it alone"),
        (Order(("finance-1",), 1, CARD, "", cards=(CARD,)), {}, "order: the order is not for it alone"),
        (Order(("finance-1",), 6, CARD, ""), {"max_rounds": 5}, "round 6: it allows at most 5 rounds"),
    ],
)
def test_each_rule_of_an_order(tmp_path, order, allow, said):
    (problem,) = of_order(tmp_path, order, **allow)
    assert problem.startswith(said)


def test_no_release_beyond_the_last(tmp_path):
    assert of_order(tmp_path, released=4, max_releases=5) == []
    assert of_order(tmp_path, released=5) == []  # without a limit
    (problem,) = of_order(tmp_path, released=5, max_releases=5)
    assert problem == "allow.max-releases: it has sent 5 updates, and no more are to leave it"
    assert of_order(tmp_path, Order(("finance-1",), 1, CARD, "", split="test"), released=5, max_releases=5) == []
    assert of_answer(tmp_path, BOTH, released=5, max_releases=5) == [problem]


def test_size_both_ways(tmp_path):
    big = {"shared/a": np.zeros(2**18, np.float32)}  # 1 MiB
    assert of_order(tmp_path, received=big, max_message_mib=1) == []
    (down,) = of_order(tmp_path, received=big, max_message_mib=0.99)
    (up,) = of_answer(tmp_path, big, big, max_message_mib=0.99)
    assert "the tensors received are 1.0 MiB, and it allows 0.99" in down
    assert "the tensors to be sent are 1.0 MiB" in up


def test_few_examples(tmp_path):
    assert of_answer(tmp_path, BOTH, examples=10, min_examples=10) == []
    (problem,) = of_answer(tmp_path, BOTH, examples=9, min_examples=10)
    assert "9 training examples would stand behind its update, fewer than the 10" in problem


@pytest.mark.parametrize(
    ("leaving", "groups", "first"),
    [
        (BOTH, ["shared"], "finance/head.bias"),
        (BOTH, ["domain"], "shared/layer.lora_A"),
        (HEAD | {"private/head.bias": np.zeros(2)}, ["shared", "domain"], "private/head.bias"),
        (HEAD | {"medical/head.bias": np.zeros(2)}, ["shared", "domain"], "medical/head.bias"),
        (HEAD | {"head.bias": np.zeros(2)}, ["shared", "domain"], "head.bias"),
        (join_more(HEAD, {"control": {"private/x": np.zeros(2)}}), ["shared", "domain"], "private/x"),
        (join_more({}, {ENCODED: {"shared/a#levels": np.zeros(2)}}), ["domain"], "shared/a#levels"),
        (join_more({}, {ENCODED: {"#indices": np.zeros(2)}}), ["domain"], "shared/layer.lora_A"),
    ],
)  # fmt: skip
def test_groups_by_the_names_that_leave(tmp_path, leaving, groups, first):
    (problem,) = of_answer(tmp_path, leaving, groups=groups)
    assert problem.startswith("allow.groups: ")
    assert problem.endswith(f"the first is {first}")


def test_a_tally_is_no_update(tmp_path):
    tally = {"loss_sum": np.zeros(1), "counts/right": np.zeros((1, 2))}
    assert of_answer(tmp_path, tally, examples=1, released=9, split="test", max_releases=5, min_examples=10) == []
