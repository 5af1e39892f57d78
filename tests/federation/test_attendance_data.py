"""Who comes with other data or labels, and what minima a configuration may ask for."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from attendance_helpers import NAMES, THREE, Coming, deployed, messages, play, when
from federation_helpers import TEXTS, WORDS, tiny
from flwr.app import ConfigRecord, Message, RecordDict

from fedfm.errors import ConfigError
from fedfm.federation.door import Door, Roll
from fedfm.federation.enrolment import enrol
from fedfm.results.run_folder import RunFolder

# ---- data and labels -----------------------------------------------------------------------------------------------


def with_card(node: int, **changes) -> Callable[[Message, Message], Message]:
    """A node whose card says something else."""

    def spoil(message: Message, reply: Message) -> Message:
        if message.metadata.message_type != "query" or message.metadata.dst_node_id != node:
            return reply
        (card,) = json.loads(reply.content["cards"]["json"])
        return Message(RecordDict({"cards": ConfigRecord({"json": json.dumps([card | changes])})}), reply_to=message)

    return spoil


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "f" * 64}, "the data of site finance-2 have changed since the run began (sha256 ffffffffffff...)"),
        ({"labels": ["new"]}, "site finance-2: the run began without the label new of domain finance"),
        ({"image_shape": [1, 8, 8]}, "site finance-2: its images are (1, 8, 8), those of domain finance None"),
    ],
)
def test_a_site_that_comes_back_with_something_else_is_refused(tmp_path, changes, reason):
    """Node 3 plays finance-2 after node 2 has gone."""
    coming = Coming({1: "finance-1", 2: "finance-2", 3: "finance-2"}, {1, 2}, spoil=with_card(3, **changes))
    gone = when("round-finished", 0, lambda: coming.here.discard(2))
    back = when("site-left", None, lambda: coming.here.add(3))
    config = deployed(tiny(tmp_path, "rounds=3", finance={**TEXTS, "minimum-sites": 1}))
    done = play(config, coming, listen=lambda event: (gone(event), back(event)))
    (said,) = messages(done, "site-refused")
    assert said.startswith("site finance-2 is left out: ") and reason in said
    assert done.folder.rounds["sites_asked"].tolist() == [0, 2, 1, 1]


def test_a_resumed_run_refuses_other_data_of_a_site_that_it_can_do_without(tmp_path):
    """And begins with the labels of its beginning, whoever is there."""
    names = {1: "finance-1", 2: "finance-2"}
    config = deployed(tiny(tmp_path, "rounds=2", finance={**TEXTS, "minimum-sites": 1}))
    folder = RunFolder.create(config)

    def pull_the_plug():
        raise RuntimeError("plug")

    with pytest.raises(RuntimeError, match="plug"):
        play(config, Coming(names, {1, 2}), folder, when("round-finished", 0, pull_the_plug))
    before = folder.info["sites"]["finance-2"]
    done = play(config, Coming(names, {1, 2}, spoil=with_card(2, sha256="f" * 64)), folder)
    assert any("finance-2 is left out: " in text and "have changed" in text for text in messages(done, "warning"))
    assert folder.info["sites"]["finance-2"] == before  # kept: it may come back with its old data
    assert done.folder.rounds["sites_asked"].tolist() == [0, 1, 1]


# ---- the keys ------------------------------------------------------------------------------------------------------


def test_a_minimum_that_no_round_can_reach_is_refused(tmp_path):
    with pytest.raises(ConfigError) as caught:
        tiny(tmp_path, "domains.finance.minimum-sites=3", 'sampling.without=["ner-1"]', finance=TEXTS,
             ner={**WORDS, "minimum-sites": 2})  # fmt: skip
    assert "minimum-sites = 3, but only 2 sites of the domain train" in str(caught.value)
    assert "minimum-sites = 2, but only 1 sites of the domain train" in str(caught.value)


def test_a_draw_takes_as_many_as_a_domain_needs():
    from fedfm.config import SamplingConfig
    from fedfm.federation.sampling import sample_sites

    sites = {f"s{number}": "a" for number in range(8)}
    settings = SamplingConfig(fraction=0.25)
    assert len(sample_sites(sites, settings, 0, 1)) == 2
    assert len(sample_sites(sites, settings, 0, 1, {"a": 5})) == 5
    assert len(sample_sites(sites, settings, 0, 1, {"a": 99})) == 8


def test_who_never_answers_the_query_is_not_waited_for(tmp_path):
    """The others begin once the wait is over."""
    coming = Coming(NAMES, {1, 2, 3}, slow={(3, "query")})
    config = deployed(tiny(tmp_path, finance=THREE))
    roll = enrol(Door(coming.grid, config, Roll(), timeout=30), wait=0.5)
    assert sorted(roll.nodes) == ["finance-1", "finance-2"]
