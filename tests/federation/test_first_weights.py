"""The weights and the data that a run begins with, and goes on with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from enrolment_helpers import call
from federation_helpers import IMAGES, WORDS, tiny
from flwr.app import ConfigRecord, Message, RecordDict

from fedfm.arrays import group_of
from fedfm.errors import ConfigError, DataError
from fedfm.federation.client_app import app
from fedfm.federation.enrolment import first_weights, refuse_changed_data

# ---- the first weights ---------------------------------------------------------------------------------------------


def test_the_first_weights_do_not_depend_on_which_domains_are_there(tmp_path):
    """Shared tensors are drawn by name, a domain's by domain and name: leaving one out moves no other."""
    three, names = first_weights(tiny(tmp_path), call(tiny(tmp_path)))
    alone = tiny(tmp_path, ner=WORDS)
    one, _ = first_weights(alone, call(alone))
    assert {group_of(name) for name in three} == {"shared", "medical", "finance", "ner"}
    assert one.keys() == set(names["ner"])
    for name, value in one.items():
        assert np.array_equal(three[name], value), name
    other, _ = first_weights(alone.replace("seed=1"), call(alone))
    assert any(not np.array_equal(other[name], value) for name, value in one.items())


def test_what_a_domain_is_sent_is_the_shared_group_and_its_own(tmp_path):
    config = tiny(tmp_path, a=IMAGES, b=IMAGES)
    weights, names = first_weights(config, call(config))
    assert set(names["a"]) | set(names["b"]) == set(weights)
    shared = {name for name in weights if group_of(name) == "shared"}
    assert set(names["a"]) & set(names["b"]) == shared
    heads = [weights[f"{domain}/head.weight"] for domain in ("a", "b")]
    assert not np.array_equal(*heads)  # two domains, two draws


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    config = tiny(tmp_path)
    roll = call(config)
    before = {site: {"sha256": card.sha256} for site, card in roll.cards.items()}
    refuse_changed_data(roll, before)  # the same data: nothing to say
    site = sorted(before)[0]
    with pytest.raises(DataError) as caught:
        refuse_changed_data(roll, before | {site: {"sha256": "0" * 64}})
    (problem,) = caught.value.problems
    assert f"the data of site {site} have changed since the run began" in problem.what
    assert problem.mend == "bring the old data back, or start a new run"


def test_early_stopping_cannot_watch_a_domain_without_validation_examples(tmp_path):
    """Ten training examples in a named split, nothing to validate with: told before the first round."""
    config = tiny(tmp_path, "early-stopping.patience=1")
    domain = next(iter(config.domains))
    roll = call(config.replace(f"early-stopping.metric={domain}"))  # it has some: fine
    assert roll.domains[domain]

    def without(message, context):
        reply = app(message, context)
        cards = json.loads(reply.content["cards"]["json"])
        for card in cards:
            card["label_counts"]["validation"] = {}
        return Message(RecordDict({"cards": ConfigRecord({"json": json.dumps(cards)})}), reply_to=message)

    with pytest.raises(ConfigError, match=f"domain {domain} has no validation examples"):
        call(config.replace(f"early-stopping.metric={domain}"), without)
