"""Fewer, larger waves: across machines scores ride on other work, and nothing else about a run is changed by it.

Each site is a node of the in-process grid, told its name as a real one is; the reference is the local engine's order of
work, in which every scoring is a wave of its own.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from federation_helpers import IMAGES, TEXTS, WORDS, Recorder, events, outcome, tiny, with_names

from fedfm.config import RunConfig
from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder


class Keyed(LocalGrid):
    """Whose nodes are known as those of a SuperLink without keys are."""

    def get_nodes(self):
        return []


KEYS = ["round", "scope", "name", "split", "metric", "model"]


def deployed(config: RunConfig, *overrides: str) -> RunConfig:
    """The same run as sites across machines have it."""
    return config.replace("engine.name=flower", "engine.superlink=net", *overrides)


def play(config: RunConfig, node_app=None, **options):
    names = dict(enumerate(config.sites(), 1))
    folder = options.pop("folder", None) or RunFolder.create(config)
    listen = options.pop("listen", lambda event: None)
    RoundLoop(Keyed(node_app or with_names(names), len(names)), config, folder, listen).run()
    return outcome(folder)


def scores(folder: RunFolder) -> pd.DataFrame:
    """metrics.csv in an order that does not depend on when a row was written."""
    return folder.metrics.sort_values(KEYS, ignore_index=True)


def assert_same_run(ridden, plain) -> None:
    """Weights and private files to the bit, every row of every table; scores to the seventh digit."""
    assert ridden.sha256 == plain.sha256
    assert ridden.private() == plain.private()
    left, right = scores(ridden.folder), scores(plain.folder)
    assert left.drop(columns="value").equals(right.drop(columns="value"))
    np.testing.assert_allclose(left["value"], right["value"], rtol=1e-7, atol=1e-9)
    numbers = ["round", "bytes_down", "bytes_up", "sites_asked", "sites_used", "sites_dropped", "loss"]
    assert ridden.folder.rounds[numbers].equals(plain.folder.rounds[numbers])
    for key in ("status", "rounds", "best_round", "final_round", "bytes_up", "bytes_down"):
        assert ridden.folder.info[key] == plain.folder.info[key]


def waves(folder: RunFolder) -> int:
    return len(events(folder, "phase"))


def test_a_round_is_one_wave_and_the_end_is_one_wave(tmp_path):
    """Three rounds: four waves in place of eight (and a query before each). The table of the screen is whole."""
    config = tiny(tmp_path, "rounds=3", finance=TEXTS, ner=WORDS)
    plain, ridden = play(config), play(deployed(config))
    assert_same_run(ridden, plain)
    assert (waves(plain.folder), waves(ridden.folder)) == (8, 4)
    told, other = (events(done.folder, "round-finished") for done in (ridden, plain))
    assert [event["round"] for event in told] == [event["round"] for event in other] == [0, 1, 2, 3]
    for left, right in zip(told, other, strict=True):
        assert left["scores"] == pytest.approx(right["scores"], rel=1e-7)
        assert left["loss"] == right["loss"]


def test_what_a_site_gets_and_sends(tmp_path):
    """A message for each round and one for the end; with the first comes the score of the weights of round 0."""
    config = deployed(tiny(tmp_path, "rounds=2", medical={**IMAGES, "sites": 1}))
    recorder = Recorder(with_names({1: "medical-1"}))
    play(config, recorder)
    assert [(kind, order.round, order.beside) for kind, order, _, _ in recorder.seen] == [
        ("train", 1, (("validation", "global"),)),
        ("train", 2, (("validation", "global"),)),
        ("evaluate", 2, (("test", "global"),)),
    ]


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy.name=fedper",),
        ("strategy.name=scaffold",),
        ("strategy.name=ditto",),
        ("strategy.name=fine-tune",),
        ("strategy.name=ifca",),  # whose sites train other weights than are scored: its scores do not ride
        ("sampling.fraction=0.5", 'sampling.without=["ner-1"]'),
        ("evaluation.every=2",),
        ("early-stopping.patience=1",),
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_every_kind_of_run_is_the_same(tmp_path, overrides):
    config = tiny(tmp_path, "rounds=3", *overrides, finance=TEXTS, ner=WORDS)
    assert_same_run(play(deployed(config)), play(config))


class Stop(Exception):  # noqa: N818
    """Not an error: somebody pulled the plug."""


MOMENTS = {
    "while round 2 trains": lambda e: e["event"] == "site-finished" and e["phase"] == "train" and e["round"] == 2,
    "while round 1 trains": lambda e: e["event"] == "site-finished" and e["phase"] == "train" and e["round"] == 1,
    "after round 1 is told": lambda e: e["event"] == "round-finished" and e["round"] == 1,
    "while the end is tested": lambda e: e["event"] == "site-finished" and e["phase"] == "validation",
    "when the last round is told": lambda e: e["event"] == "round-finished" and e["round"] == 3,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_and_resumed_run_ends_as_if_it_had_not_been_stopped(tmp_path, moment):
    """The scores of the checkpoint's weights may be in the tables already, in part, or not yet."""
    config = tiny(tmp_path, "rounds=3", 'sharing."head*"=private', finance=TEXTS, ner=WORDS)
    stopped = []

    def pull_the_plug(event):
        if MOMENTS[moment](event) and not stopped:
            stopped.append(event)
            raise Stop

    folder = RunFolder.create(deployed(config))
    with pytest.raises(Stop):
        play(deployed(config), folder=folder, listen=pull_the_plug)
    assert_same_run(play(deployed(config), folder=folder), play(config))


def test_a_site_that_cannot_be_scored_still_trains(tmp_path, monkeypatch):
    from fedfm.federation import site

    evaluate = site.evaluate

    def broken(order, received):
        if order.sites == ("finance-1",) and order.split == "validation":
            raise MemoryError("the validation images do not fit")
        return evaluate(order, received)

    monkeypatch.setattr(site, "evaluate", broken)
    done = play(deployed(tiny(tmp_path, finance=TEXTS)))
    assert done.folder.rounds["sites_used"].tolist() == [0, 2]
    said = [event["message"] for event in done.events("warning")]
    assert "round 0: no validation score of site finance-1: MemoryError: the validation images do not fit" in said
    rows = done.folder.metrics.query("split == 'validation' and scope == 'site'")
    assert set(rows["name"]) == {"finance-2"}


def test_a_site_that_fails_has_neither_update_nor_score(tmp_path):
    """What a node answers with an error counts as left out, and its score is missed with the same reason."""
    names = {1: "finance-1", 2: "finance-2"}

    def failing(message, context):
        if message.metadata.message_type == "train" and message.metadata.dst_node_id == 1:
            raise OSError("no disk")
        return with_names(names)(message, context)

    done = play(deployed(tiny(tmp_path, finance=TEXTS)), failing)
    assert done.folder.rounds["sites_used"].tolist() == [0, 1]
    reasons = [event["reason"] for event in done.events("update-left-out")]
    assert len(reasons) == 1 and "OSError: no disk" in reasons[0]
    scored = done.folder.metrics.query("scope == 'site' and metric == 'loss' and split != 'train'")
    assert Counter(scored["name"]) == {"finance-1": 2, "finance-2": 3}  # of round 0 only finance-2's


def test_one_node_may_hold_many_sites(tmp_path):
    """As under Flower's own simulation: nothing hangs on a node for each site."""
    config = deployed(tiny(tmp_path, "rounds=2", finance=TEXTS))
    folder = RunFolder.create(config)
    RoundLoop(Keyed(app, 1), config, folder).run()
    assert folder.info["final_weights_sha256"] == play(config).sha256
