"""A site that sends rubbish, fails, or is silent: it is left out and named, and the round goes on with the rest."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import IMAGES, TEXTS, Outcome, Spoiler, events, outcome, tiny, train_federation
from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from fedfm import engines
from fedfm.arrays import sha256
from fedfm.engines import running
from fedfm.engines.local import LocalGrid
from fedfm.errors import RunError, TooFewSitesError
from fedfm.federation.client_app import app
from fedfm.federation.messages import read_answer, read_order, to_record
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder

BAD = "finance-2"


def first_value(delta, value):
    name = min(delta)
    spoilt = delta[name].copy()
    spoilt.flat[0] = value
    return delta | {name: spoilt}


def without_first(delta):
    return {name: value for name, value in delta.items() if name != min(delta)}


def turned(delta):
    return delta | {"shared/" + n.partition("/")[2]: v.T.copy() for n, v in delta.items() if n.endswith("lora_A")}


SPOILT = {
    "NaN": (lambda d: first_value(d, np.nan), "values are not finite, 1 of them in finance/head.bias"),
    "infinite": (lambda d: first_value(d, -np.inf), "values are not finite"),
    "missing tensor": (without_first, "tensors are missing, the first is finance/head.bias"),
    "wrong shape": (turned, "lora_A has shape (128, 8) float32, expected (8, 128) float32"),
    "wrong dtype": (lambda d: {n: v.astype(np.float16) for n, v in d.items()}, "float16, expected"),
    "foreign tensor": (
        lambda d: d | {"medical/head.bias": np.zeros(4, np.float32)},
        "it holds 1 tensors that the site was not sent, the first is medical/head.bias",
    ),
    "absurd norm": (
        lambda d: {n: 1e6 * v for n, v in d.items()}, "the limit (screening.max-norm) is 100",
    ),
}  # fmt: skip


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


@pytest.fixture
def engine(monkeypatch):
    """`fedfm.run` with the local engine over another node app, and no figures; a function that sets the app."""

    def use(node_app) -> None:
        def run_local(config, folder, listen):
            RoundLoop(LocalGrid(node_app, len(config.sites())), config, folder, listen).run()

        monkeypatch.setitem(running.ENGINES, "local", run_local)

    monkeypatch.setattr(running, "leave_report", lambda folder: None)
    monkeypatch.setattr(running, "leave_report_of_failure", lambda folder: None)
    return use


def test_too_few_usable_sites_end_the_run_with_a_checkpoint_that_can_be_resumed(tmp_path, engine):
    """Round 2 of 3 loses two of six sites, the minimum is five; mended, the resumed run ends as a clean one."""
    config = tiny(tmp_path, "rounds=3", "sampling.minimum-sites=5")

    def node_app(message: Message, context) -> Message:
        for site in ("medical-2", BAD):
            if message.metadata.message_type == "train" and read_order(message)[0].sites == (site,):
                return Spoiler(site, SPOILT["NaN"][0], round=2)(message, context)
        return app(message, context)

    engine(node_app)
    with pytest.raises(TooFewSitesError) as caught:
        engines.run(config)
    assert isinstance(caught.value, RunError)
    assert caught.value.exit_code == 1
    (path,) = (found for found in tmp_path.iterdir() if found.is_dir())
    message = str(caught.value)
    assert "round 2: 4 usable updates, the minimum is 5 (sampling.minimum-sites)" in message
    assert f"`fedfm resume {path}` goes on after round 1" in message
    folder = RunFolder.open(path)
    assert folder.info["status"] == "failed"
    assert folder.info["error"] == "TooFewSitesError"
    assert "4 usable updates" in folder.info["reason"]
    assert "4 usable updates" in events(folder, "run-failed")[0]["reason"]
    assert [event["site"] for event in events(folder, "update-left-out")] == [BAD, "medical-2"]

    engine(app)
    resumed = engines.resume(path)
    assert resumed.info["status"] == "finished"
    assert resumed.info["reason"] is None
    assert resumed.info["final_weights_sha256"] == train_federation(config).sha256
    assert resumed.rounds["round"].tolist() == [0, 1, 2, 3]
    assert sha256(outcome(folder).weights) == resumed.info["final_weights_sha256"]
    assert engines.resume(path).info == resumed.info  # a finished run is left as it is


def test_a_run_whose_test_nobody_scores_has_not_finished_and_resume_asks_again(tmp_path, engine):
    """All sites fail when they are to score the test: nothing is lost, and nothing is called finished."""
    config = tiny(tmp_path)

    def node_app(message: Message, context) -> Message:
        if message.metadata.message_type == "evaluate" and read_order(message)[0].split == "test":
            raise OSError("disk gone")
        return app(message, context)

    engine(node_app)
    with pytest.raises(RunError, match="no site has scored its test"):
        engines.run(config)
    (path,) = (found for found in tmp_path.iterdir() if found.is_dir())
    info = RunFolder.open(path).info
    assert (info["status"], info["final_round"]) == ("failed", 1)
    assert sha256(load_file(path / "model" / "weights.safetensors")) == info["final_weights_sha256"]

    engine(app)
    resumed = engines.resume(path)
    whole = train_federation(config)
    assert resumed.info["status"] == "finished"
    assert resumed.info["final"] == whole.folder.info["final"] != {}
    assert resumed.info["final_weights_sha256"] == whole.sha256
