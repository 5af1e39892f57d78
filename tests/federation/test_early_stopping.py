"""Early stopping: on validation, after `patience` rounds without a better score; the best round's weights win."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import TEXTS, WORDS, Recorder, tiny, train_federation
from flwr.app import Message

from fedfm.arrays import sha256
from fedfm.federation.checkpoint import load_checkpoint
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_order


def weights_by_round(recorder: Recorder, split: str) -> dict[int, str]:
    """Round -> sha256 of the federation's weights, put together from what the sites were sent to score."""
    sent: dict[int, dict] = {}
    for order, down, _ in recorder.of("evaluate"):
        if order.split == split:
            sent.setdefault(order.round, {}).update(down)
    return {number: sha256(weights) for number, weights in sent.items()}


def too_fast(tmp_path, *overrides):
    """A learning rate at which two rounds of training help and the following ones do not."""
    return tiny(
        tmp_path, "rounds=12", "local.learning-rate=0.03", "local.head-learning-rate=0.3", "early-stopping.patience=1",
        *overrides, finance={**TEXTS, "max-examples": 60}, ner=WORDS,
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["mean", "worst", "finance"])
def test_the_best_round_is_restored_scored_and_saved(tmp_path, metric):
    recorder = Recorder()
    done = train_federation(too_fast(tmp_path, f"early-stopping.metric={metric}"), recorder)
    info = done.folder.info
    table = done.folder.metrics.query("split == 'validation'")
    if metric == "finance":
        table = table.query("scope == 'domain' and domain == 'finance' and metric == 'macro_f1'")
    else:
        table = table.query(f"scope == 'federation' and metric == '{metric}'")
    scores = table.set_index("round")["value"]
    best = int(scores.idxmax())  # the first of equal ones
    assert info["status"] == "early-stopped"
    assert info["rounds"] == best + 1 < 12
    assert info["best_round"] == info["final_round"] == best
    seen = weights_by_round(recorder, "validation")
    assert sorted(seen) == list(range(info["rounds"] + 1))
    assert done.sha256 == sha256(done.weights) == info["final_weights_sha256"] == seen[best]
    assert len(set(seen.values())) == len(seen)  # and no other round's
    assert weights_by_round(recorder, "test") == {best: seen[best]}  # tested once, on the best


def test_without_patience_the_last_round_is_the_result(tmp_path):
    recorder = Recorder()
    done = train_federation(too_fast(tmp_path, "early-stopping.patience=0", "rounds=3"), recorder)
    assert done.folder.info["status"] == "finished"
    assert done.folder.info["final_round"] == 3
    assert done.sha256 == weights_by_round(recorder, "validation")[3]
    assert weights_by_round(recorder, "test") == {3: done.sha256}


def test_a_private_head_is_restored_with_the_best_round(tmp_path):
    """The final test reads each site's head of the best round, not its last one."""
    done = train_federation(too_fast(tmp_path, 'sharing."head*"=private'))
    best = done.folder.info["best_round"]
    assert best < done.folder.info["rounds"]
    validation = done.folder.metrics.query("scope == 'site' and split == 'validation'")
    assert set(validation["round"]) == set(range(best + 2))
    assert best > 0  # else there is nothing that training could have kept
    no_further = ('sharing."head*"=private', "early-stopping.patience=0", f"rounds={best}")
    trained = train_federation(too_fast(tmp_path, *no_further))
    assert trained.folder.info["final"] == done.folder.info["final"]
    assert trained.sha256 == done.sha256


def test_a_missing_score_is_no_best_score(tmp_path):
    """Nobody can score round 0; the first known score is then the best one so far, and the run is not stopped by it."""

    def blind_at_first(message: Message, context) -> Message:
        if message.metadata.message_type == "evaluate" and read_order(message)[0].round == 0:
            raise OSError("no validation data yet")
        return app(message, context)

    done = train_federation(tiny(tmp_path, "rounds=2", "early-stopping.patience=5"), blind_at_first)
    info = done.folder.info
    assert info["best_round"] in (1, 2)
    assert info["final_round"] == info["best_round"]
    mean = done.folder.metrics.query("scope == 'federation' and split == 'validation' and metric == 'mean'")
    assert np.isnan(mean["value"].iloc[0])


def test_patience_runs_out_only_where_a_score_could_have_come(tmp_path):
    """Rounds 1 and 2 are not validated: that nothing is better than round 0 is not known before round 3."""
    done = train_federation(tiny(tmp_path, "rounds=6", "evaluation.every=3", "early-stopping.patience=1"))
    assert done.folder.info["rounds"] in (3, 6)


def test_where_nothing_was_scored_the_last_weights_are_the_result(tmp_path):
    def blind(message: Message, context) -> Message:
        if message.metadata.message_type == "evaluate" and read_order(message)[0].split == "validation":
            raise OSError("no validation data")
        return app(message, context)

    done = train_federation(tiny(tmp_path, "rounds=2", "early-stopping.patience=5"), blind)
    assert done.folder.info["final_round"] == done.folder.info["rounds"] == 2


@pytest.mark.parametrize("patience", [0, 1])
def test_a_checkpoint_holds_other_weights_than_its_own_only_for_early_stopping(tmp_path, patience):
    done = train_federation(too_fast(tmp_path, f"early-stopping.patience={patience}", "rounds=4"))
    last = load_checkpoint(done.folder.path / "checkpoint" / "state.safetensors")
    assert done.folder.info["best_round"] < last.progress.round  # in both runs there were better ones before
    assert (sha256(last.best) == sha256(last.weights)) == (patience == 0)
    assert sha256(last.best) == done.sha256
