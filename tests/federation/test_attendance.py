"""Sites that come late, leave, come back, refuse, or are not who they say: over a grid whose nodes come and go."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from attendance_helpers import NAMES, THREE, Coming, deployed, messages, play, when
from federation_helpers import TEXTS, WORDS, tiny
from flwr.app import Error, Message

from fedfm.errors import DataError, EngineError, TooFewSitesError
from fedfm.results.run_folder import RunFolder

# ---- the start -----------------------------------------------------------------------------------------------------


def test_a_run_begins_without_a_missing_site_and_takes_it_in_later(tmp_path):
    """finance-3 comes while round 1 trains, and trains from round 2 on; run.json knows all three."""
    coming = Coming(NAMES, {1, 2})
    config = deployed(tiny(tmp_path, "rounds=3", finance=THREE))
    done = play(config, coming, listen=when("phase", 1, lambda: coming.here.add(3)))
    assert "the run begins without site finance-3: no node holds it after 0 s" in messages(done, "warning")[0]
    assert messages(done, "site-joined") == ["site finance-3 (finance) has joined"]
    assert done.folder.rounds["sites_used"].tolist()[:2] == [0, 2]
    assert done.folder.rounds["sites_used"].tolist()[-1] == 3
    assert list(done.folder.info["sites"]) == sorted(NAMES.values())


def test_by_default_every_site_must_be_there(tmp_path):
    config = deployed(tiny(tmp_path, finance={**THREE, "minimum-sites": 0}))
    with pytest.raises(EngineError, match="no node holds finance-3 after"):
        play(config, Coming(NAMES, {1, 2}))


def test_fewer_than_the_minimum_do_not_begin(tmp_path):
    config = deployed(tiny(tmp_path, finance={**THREE, "minimum-sites": 2}))
    with pytest.raises(EngineError, match="no node holds finance-2, finance-3 after"):
        play(config, Coming(NAMES, {1}))


def test_sites_of_one_class_begin_where_others_may_come(tmp_path):
    """A class each, as a pathological split gives it: the one that is there is told, and not refused."""
    classes = {"partition": "pathological", "classes-per-site": 1, "max-examples": 30}
    config = tiny(tmp_path, "rounds=2", finance={**THREE, **classes})
    coming = Coming(NAMES, {1})
    done = play(deployed(config), coming, listen=when("phase", 1, lambda: coming.here.update({2, 3})))
    (said,) = (text for text in messages(done, "warning") if "have a single class" in text)
    assert said.endswith("nothing can be learned before finance-2 or finance-3 comes")
    assert done.folder.info["status"] == "finished" and done.folder.rounds["sites_used"].tolist()[-1] == 3


def refusing(site: str) -> Callable[[Message, Message], Message]:
    def spoil(message: Message, reply: Message) -> Message:
        from fedfm.federation.messages import write_problem

        if message.metadata.message_type == "query" and f'"{site}"' in reply.content["cards"]["json"]:
            return write_problem(DataError("no such table", mend="ask the site"), message, [site])
        return reply

    return spoil


def test_a_site_that_refuses_is_left_out_as_long_as_the_minimum_holds(tmp_path):
    config = tiny(tmp_path, finance=THREE)
    done = play(deployed(config), Coming(NAMES, {1, 2, 3}, spoil=refusing("finance-2")))
    (said,) = (text for text in messages(done, "warning") if "left out" in text)
    assert said == "site finance-2 is left out: no such table\n    mend: ask the site"
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]
    strict = deployed(config, "domains.finance.minimum-sites=3")
    with pytest.raises(DataError, match="no such table"):
        play(strict, Coming(NAMES, {1, 2, 3}, spoil=refusing("finance-2")))


def test_two_nodes_that_claim_one_site(tmp_path):
    """The first one that is there has the name; the other is refused and told once, the run unharmed."""
    coming = Coming({1: "finance-1", 2: "finance-2", 3: "finance-1"}, {1, 2})
    config = deployed(tiny(tmp_path, "rounds=2", finance=TEXTS))
    done = play(config, coming, listen=when("phase", 1, lambda: coming.here.add(3)))
    said = 'node 3 is left out: two nodes say that they are site "finance-1"\n    mend: stop one of them'
    assert messages(done, "site-refused") == [said]
    alone = play(config, Coming({1: "finance-1", 2: "finance-2"}, {1, 2}))
    assert done.sha256 == alone.sha256


def test_a_stranger_does_not_end_a_run(tmp_path):
    coming = Coming({1: "finance-1", 2: "finance-2", 3: "somebody"}, {1, 2, 3})
    done = play(deployed(tiny(tmp_path, finance=TEXTS)), coming)
    (said,) = (text for text in messages(done, "warning") if "left out" in text)
    assert said.startswith('node 3 is left out: the configuration has no site "somebody"')
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]


# ---- while it goes -------------------------------------------------------------------------------------------------


def test_a_site_leaves_in_a_round_and_is_back_in_the_next(tmp_path):
    """Lost: its part of that round. A scaffold's own state at the site goes on."""
    coming = Coming({1: "finance-1", 2: "finance-2"}, {1, 2})
    leave = when("phase", 2, lambda: coming.here.discard(2))
    back = when("update-left-out", 2, lambda: coming.here.add(2))
    config = deployed(tiny(tmp_path, "rounds=3", "strategy.name=scaffold", finance={**TEXTS, "minimum-sites": 1}))
    done = play(config, coming, listen=lambda event: (leave(event), back(event)))
    assert done.folder.rounds["sites_used"].tolist() == [0, 2, 1, 2]
    (left_out,) = done.events("update-left-out")
    assert left_out["site"] == "finance-2" and "Node Unavailable" in left_out["reason"]
    assert {file.rpartition("/")[2] for file in done.private() if file.startswith("finance-2")} == {
        "000001.safetensors", "000003.safetensors"
    }  # fmt: skip


def test_a_site_that_is_gone_is_not_asked_and_comes_back_with_another_node(tmp_path):
    coming = Coming({1: "finance-1", 2: "finance-2", 3: "finance-2"}, {1, 2})
    gone = when("round-finished", 0, lambda: coming.here.discard(2))  # told when round 1 has trained
    back = when("site-left", None, lambda: coming.here.add(3))
    config = deployed(tiny(tmp_path, "rounds=4", finance={**TEXTS, "minimum-sites": 1}))
    done = play(config, coming, listen=lambda event: (gone(event), back(event)))
    assert messages(done, "site-left") == ["site finance-2 (finance) is gone; it takes part again once it is back"]
    assert messages(done, "site-joined") == ["site finance-2 (finance) is back"]
    assert done.folder.rounds["sites_asked"].tolist()[:2] == [0, 2]
    assert done.folder.rounds["sites_asked"].tolist()[-1] == 2
    assert done.folder.rounds["sites_dropped"].sum() == 0


def test_a_round_waits_for_its_minimum_and_fails_without_it(tmp_path):
    coming = Coming({1: "finance-1", 2: "finance-2"}, {1, 2})
    config = deployed(tiny(tmp_path, "rounds=2", finance={**TEXTS, "minimum-sites": 2}))
    folder = RunFolder.create(config)
    with pytest.raises(TooFewSitesError) as caught:
        play(config, coming, folder, when("round-finished", 0, lambda: coming.here.discard(2)))
    assert "round 2: 1 of 2 sites of domain finance are there after 0 s" in str(caught.value)
    assert f"fedfm resume {folder.path}" in str(caught.value)
    assert messages(folder, "warning")[-1] == "round 2 waits for sites: 1 of 2 sites of domain finance are there"
    coming.here.add(2)
    again = Coming({1: "finance-1", 2: "finance-2"}, {1, 2})
    whole = play(config, Coming({1: "finance-1", 2: "finance-2"}, {1, 2}))
    assert play(config, again, folder).sha256 == whole.sha256


def test_a_domain_has_its_own_minimum_of_updates(tmp_path):
    """finance sends nothing that can be used: the round fails, though ner alone would do for sampling.minimum-sites."""
    names = {1: "finance-1", 2: "ner-1"}
    domains = {"finance": {**TEXTS, "sites": 1, "minimum-sites": 1}, "ner": {**WORDS, "sites": 1}}
    config = deployed(tiny(tmp_path, **domains))

    def silent(message, reply):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 1:
            return Message(Error(2, "crashed"), reply_to=message)
        return reply

    with pytest.raises(TooFewSitesError) as caught:
        play(config, Coming(names, {1, 2}, spoil=silent))
    said = "round 1: 0 usable updates of domain finance, the minimum is 1 (domains.finance.minimum-sites)"
    assert said in str(caught.value)


def test_late_answers_are_thrown_away_and_told(tmp_path):
    """finance-2 answers round 1 while round 2 goes; its update is not used in either, and its next one is."""
    coming = Coming({1: "finance-1", 2: "finance-2"}, {1, 2}, slow={(2, "train")})
    config = deployed(tiny(tmp_path, "rounds=2", finance={**TEXTS, "minimum-sites": 1}), "engine.train-timeout=0.5")
    done = play(config, coming, listen=when("round-finished", 0, coming.slow.clear))
    assert done.folder.rounds["sites_used"].tolist() == [0, 1, 2]
    (left_out,) = done.events("update-left-out")
    assert left_out["reason"].startswith("no answer, and none of another site for 0.5 s")
    assert messages(done, "late-reply") == [
        "round 1: the answer of site finance-2 (train) has come too late, and is not used"
    ]
