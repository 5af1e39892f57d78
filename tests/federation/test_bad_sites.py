"""A site that sends rubbish, fails, or is silent: it is left out and named, and the round goes on with the rest."""

from __future__ import annotations

import numpy as np
import pytest
from bad_site_helpers import BAD, SPOILT
from federation_helpers import IMAGES, TEXTS, Outcome, Spoiler, outcome, tiny, train_federation
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_answer, read_order, to_record
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder


def left_out(done: Outcome) -> list[tuple[int, str, str]]:
    return [(event["round"], event["site"], event["reason"]) for event in done.events("update-left-out")]


def assert_went_on_without(done: Outcome, reason: str, rounds: int = 2) -> None:
    """Round 1 ran with five sites and named the sixth; round 2 with all six; the run finished with finite weights."""
    ((number, site, said),) = left_out(done)
    assert (number, site) == (1, BAD)
    assert reason in said
    assert said.count("the learning rate is too high") <= 1, said  # where there is a hint, it is told once
    assert done.folder.info["status"] == "finished"
    table = done.folder.rounds
    assert table["sites_asked"].tolist() == [0, 6, 6][: rounds + 1]
    assert table["sites_used"].tolist() == [0, 5, 6][: rounds + 1]
    assert table["sites_dropped"].tolist() == [0, 1, 0][: rounds + 1]
    assert all(np.isfinite(value).all() for value in done.weights.values())


@pytest.mark.parametrize("kind", SPOILT)
def test_a_spoilt_update_is_left_out_and_the_run_goes_on(tmp_path, kind):
    spoil, reason = SPOILT[kind]
    config = tiny(tmp_path, "rounds=2", "screening.max-norm=100")
    assert_went_on_without(train_federation(config, Spoiler(BAD, spoil)), reason)


def test_what_is_left_out_leaves_no_trace_in_the_mean(tmp_path):
    """Two kinds of rubbish from one site give one result: only the others' updates count."""
    config = tiny(tmp_path)
    shas = {train_federation(config, Spoiler(BAD, SPOILT[kind][0])).sha256 for kind in ("NaN", "missing tensor")}
    assert len(shas) == 1
    assert shas != {train_federation(config).sha256}


def replying(make):
    """A node app whose bad site answers its training order of round 1 with `make(order message, honest reply)`."""

    def node_app(message: Message, context) -> Message:
        if message.metadata.message_type == "train":
            order, _ = read_order(message)
            if order.sites == (BAD,) and order.round == 1:
                return make(message, app(message, context))
        return app(message, context)

    return node_app


def explode(message, reply):
    raise MemoryError("the graphics card is on fire")


def with_parts(message, reply, **changes):
    answer = read_answer(reply)
    parts = {
        "arrays": to_record(answer.arrays),
        "metrics": MetricRecord(dict(answer.metrics)),
        "meta": ConfigRecord({"sites": [BAD], "left-out": [], "reasons": []}),
    } | changes
    return Message(RecordDict({name: part for name, part in parts.items() if part is not None}), reply_to=message)


def damaged(message, reply):
    arrays = to_record(read_answer(reply).arrays)
    first = next(iter(arrays.values()))
    first.data = first.data[: len(first.data) // 2]
    return with_parts(message, reply, arrays=arrays)


ANSWERS = {
    "raises": (explode, "MemoryError: the graphics card is on fire"),
    "empty": (lambda m, r: Message(RecordDict(), reply_to=m), "cannot be read"),
    "no arrays": (lambda m, r: with_parts(m, r, arrays=None), "cannot be read"),
    "no metrics": (lambda m, r: with_parts(m, r, metrics=None), "cannot be read"),
    "no number of examples": (
        lambda m, r: with_parts(m, r, metrics=MetricRecord({"loss": [1.0]})),
        "it says that it was trained on nan examples",
    ),
    "damaged bytes": (damaged, "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ANSWERS)
def test_an_answer_that_is_none_is_left_out(tmp_path, kind):
    make, reason = ANSWERS[kind]
    assert_went_on_without(train_federation(tiny(tmp_path, "rounds=2"), replying(make)), reason)


def test_a_site_cannot_claim_more_examples_than_it_holds(tmp_path):
    """A site that says a thousand million would own the mean of its domain."""

    def boast(message, reply):
        metrics = dict(read_answer(reply).metrics) | {"num-examples": [1e9]}
        return with_parts(message, reply, metrics=MetricRecord(metrics))

    reason = "it says that it was trained on 1e+09 examples, but the site holds "
    assert_went_on_without(train_federation(tiny(tmp_path, "rounds=2"), replying(boast)), reason)


def test_an_update_whose_loss_is_not_finite_is_left_out(tmp_path):
    """Finite weights behind a loss that is not are on their way to infinity."""

    def told_nan(message, reply):
        metrics = dict(read_answer(reply).metrics) | {"loss": [float("nan")]}
        return with_parts(message, reply, metrics=MetricRecord(metrics))

    done = train_federation(tiny(tmp_path, "rounds=2"), replying(told_nan))
    assert_went_on_without(done, "its training loss is not finite; often the learning rate is too high")
    assert np.isfinite(done.folder.rounds["loss"].iloc[-1])


class Lossy(LocalGrid):
    """A grid that does the work of one order and loses the reply."""

    def __init__(self, lose, num_nodes: int):
        super().__init__(app, num_nodes)
        self.lose = lose

    def pull_messages(self, message_ids):
        for name in message_ids:
            if name in self._waiting and self.lose(self._waiting[name]):
                del self._waiting[name]
        return super().pull_messages(message_ids)


def is_first_training_of_the_bad_site(message: Message) -> bool:
    if message.metadata.message_type != "train":
        return False
    order, _ = read_order(message)
    return order.sites == (BAD,) and order.round == 1


def test_a_site_that_never_answers_is_left_out(tmp_path):
    train_federation(tiny(tmp_path))  # what is read and built once in a process must not eat the timeout
    config = tiny(tmp_path, "rounds=2", "engine.timeout=4")
    folder = RunFolder.create(config)
    RoundLoop(Lossy(is_first_training_of_the_bad_site, 6), config, folder).run()
    assert_went_on_without(outcome(folder), "no answer, and none of another site for 4 s")


def test_a_site_that_cannot_be_scored_is_a_warning(tmp_path):
    """A tally over other labels, and one that raises: the scores of the rest stand, the run goes on."""

    def node_app(message: Message, context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "evaluate":
            order, _ = read_order(message)
            if order.sites == ("medical-1",):
                raise OSError("disk gone")
            if order.sites == ("ner-2",):
                tally = read_answer(reply).arrays
                tally["counts/spans"] = tally["counts/spans"][:, :-1]
                return with_parts(message, reply, arrays=to_record(tally))
            if order.sites == ("finance-1",):
                return with_parts(message, reply, arrays=None)
        return reply

    config = tiny(tmp_path)
    done = train_federation(config, node_app)
    assert done.sha256 == train_federation(config).sha256
    said = [event["message"] for event in done.events("warning")]
    for part in ("no test score of site medical-1: no answer (Flower error 2): OSError: disk gone",
                 "no validation score of site ner-2: ", "no test score of site finance-1: "):  # fmt: skip
        assert any(part in message for message in said), part
    scores = done.folder.metrics.query("round == 1 and split == 'test' and scope == 'domain'")
    assert set(scores["domain"]) == {"medical", "finance", "ner"}
    assert set(scores["num_examples"]) == {20}  # of one site of each


def test_a_site_does_not_keep_a_private_part_that_is_not_finite(tmp_path):
    """A rate of 1e38 overflows the first round; what the site kept before, here nothing, stays."""
    broken = {**TEXTS, "sites": 1, "local": {"head-learning-rate": 1e38, "epochs": 9}}
    config = tiny(tmp_path, 'sharing."head*"=private', medical={**IMAGES, "sites": 1}, finance=broken)
    done = train_federation(config)
    assert [site for _, site, _ in left_out(done)] == ["finance-1"]
    assert list(done.private()) == ["medical-1/000001.safetensors"]
