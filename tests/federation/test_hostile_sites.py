"""A site that means harm: in each round of one run it tries something else, and the run is that of the others alone.

What a message holds is made here byte by byte, as somebody would who has no fedfm. In round r the site `finance-2`
plays the r-th of the attacks below in place of its honest update; a run in which it only refuses has the same weights.
"""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from federation_helpers import Outcome
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from hostile_helpers import (
    BAD,
    Attack,
    header,
    hostile,
    more,
    npy,
    refusing,
    run_with,
    with_array,
    with_arrays,
    with_numbers,
    with_record,
)  # fmt: skip

from fedfm.results.audit import read_chain

UNPICKLED: list[str] = []


def leave_mark() -> None:
    UNPICKLED.append("boom")


class Bomb:
    """Unpickled it leaves a mark."""

    def __reduce__(self):
        return leave_mark, ()


def renamed(record: ArrayRecord) -> None:
    for name in [n for n in record if n.startswith("finance/")]:
        record[name.replace("finance/", "medical/")] = record.pop(name)


HUGE = (10**6, 10**6)
FLOATS = np.zeros(4, np.float32)
ATTACKS: dict[str, tuple[Attack, str]] = {
    "oversized": (more("shared/x", np.zeros(2**21, np.float32)), "and what was asked for is at most"),
    "oversized beside the tensors": (
        with_record("meta", lambda c: ConfigRecord({**c["meta"], "reasons": ["x" * 2**24]})),
        "and what was asked for is at most",
    ),
    "a pickle": (
        with_array(lambda a: Array("object", (1,), "numpy.ndarray", npy(np.array([Bomb()], object)))),
        "it holds an array of object (1,)",
    ),
    "a pickle as floats": (
        with_array(lambda a: Array("float32", (1,), "numpy.ndarray", npy(np.array([Bomb()], object)))),
        "cannot be read",
    ),
    "a bare pickle": (
        with_array(lambda a: Array("float32", a.shape, "numpy.ndarray", pickle.dumps(Bomb()))),
        "cannot be read",
    ),
    "an absurd shape": (
        with_array(lambda a: Array("float32", HUGE, "numpy.ndarray", header(HUGE) + bytes(400))),
        "which is 4000000000000 bytes, in 400 bytes",
    ),
    "an absurd shape in the header": (
        with_array(lambda a: Array("float32", (100,), "numpy.ndarray", header(HUGE) + bytes(400))),
        "whose bytes say float32 (1000000, 1000000)",
    ),
    "a shape that overflows": (
        with_array(lambda a: Array("float32", (2**62, 8), "numpy.ndarray", header((2**62, 8)) + bytes(32))),
        "in 32 bytes",
    ),
    "a negative shape": (
        with_array(lambda a: Array("float32", (-1,), "numpy.ndarray", header((-1,)) + bytes(8))),
        "none of numbers",
    ),
    "more bytes than the shape needs": (
        with_array(lambda a: Array("float32", (4,), "numpy.ndarray", header((4,)) + bytes(64))),
        "which is 16 bytes, in 64 bytes",
    ),
    "no bytes": (with_array(lambda a: Array("float32", a.shape, "numpy.ndarray", b"")), "cannot be read"),
    "a dtype of fields": (
        with_array(lambda a: Array("float32,float32", (1,), "numpy.ndarray", header((1,)) + bytes(8))),
        "none of numbers",
    ),
    "another format": (with_array(lambda a: Array("float32", a.shape, "torch", a.data)), "as torch"),
    "another domain's group": (with_arrays(renamed), "tensors are missing, the first is finance/"),
    "another domain's tensor too": (more("medical/head.bias", FLOATS), "the first is medical/head.bias"),
    "a private tensor": (more("private/head.bias", FLOATS), "the first is private/head.bias"),
    "tensors beside the update": (more("spy>medical/x", FLOATS), 'it also holds tensors of "spy"'),
    "compressed where nothing is": (more("encoded>#values", FLOATS), "its compressed update cannot be read"),
    "another record": (with_record("junk", ConfigRecord({"a": 1})), "it holds what was not asked for: junk"),
    "another site's name": (
        with_record("meta", lambda c: ConfigRecord({**c["meta"], "sites": ["finance-1"]})),
        'the reply says that it comes from site "finance-1"',
    ),
    "another site left out": (
        with_record("meta", lambda c: ConfigRecord({**c["meta"], "left-out": ["finance-1"], "reasons": ["so"]})),
        'it leaves out site "finance-1", which is not its own',
    ),
    "a refusal that is none": (with_record("problem", ConfigRecord({"class": "SystemExit"})), "cannot be read"),
    "examples below zero": (with_numbers(num_examples=-3), "it says that it was trained on -3 examples"),
    "half an example": (with_numbers(num_examples=2.5), "it says that it was trained on 2.5 examples"),
    "more examples than it holds": (with_numbers(num_examples=1e15), "but the site holds"),
    "endless steps": (with_numbers(steps=np.inf), "it says that steps is inf"),
    "steps below zero": (with_numbers(steps=-1), "it says that steps is -1"),
    "no number for its bytes": (with_numbers(update_bytes=np.nan), "it says that update-bytes is nan"),
    "seconds below zero": (with_numbers(seconds=-1e9), "it says that seconds is -1e+09"),
    "a loss that is none": (with_numbers(loss=-np.inf), "its training loss is not finite"),
    "numbers that are no list": (with_record("metrics", MetricRecord({"loss": 1.0})), "cannot be read"),
}


def test_every_attack_is_refused_with_a_sentence_recorded_and_without_a_trace_in_the_weights(tmp_path):
    attacks = list(ATTACKS.values())

    def attacking(round: int, message: Message, reply: Message) -> Message:
        return Message(attacks[round - 1][0](reply), reply_to=message)

    done = run_with(tmp_path / "hostile", hostile(attacking), len(attacks), "evaluation.every=100")
    told = {event["round"]: (event["site"], event["reason"]) for event in done.events("update-left-out")}
    assert list(told) == list(range(1, len(attacks) + 1))
    for number, (name, (_, reason)) in enumerate(ATTACKS.items(), 1):
        assert told[number][0] == BAD, name
        assert reason in told[number][1], name
    assert not UNPICKLED
    pickle.loads(pickle.dumps(Bomb()))
    assert UNPICKLED  # it would have left its mark
    assert done.folder.info["status"] == "finished"
    assert done.folder.rounds["sites_used"].tolist() == [0] + [1] * len(attacks)

    chain = read_chain(done.folder.path / "audit.jsonl")
    assert chain.broken is None
    assert [e.fields["round"] for e in chain.entries.values() if e.kind == "left-out"] == list(told)
    recorded = {e.fields["round"]: e for e in chain.entries.values() if e.kind in ("unreadable", "update-in")
                if e.fields["site"] == BAD}  # fmt: skip
    assert recorded.keys() == told.keys()

    assert (
        run_with(tmp_path / "refusing", hostile(refusing), len(attacks), "evaluation.every=100").sha256 == done.sha256
    )


@pytest.mark.parametrize("steps", [1, 1000, None])
def test_steps_that_a_site_was_not_due_do_not_reach_a_rule_that_divides_by_them(tmp_path, steps):
    """FedNova takes a change by its step: of a site that says 1 where it took more, the change would rule the rest."""

    def lying(round: int, message: Message, reply: Message) -> Message:
        told = {name: value for name, value in reply.content["metrics"].items() if name != "steps"}
        reply.content["metrics"] = MetricRecord(told | ({} if steps is None else {"steps": [float(steps)]}))
        return reply

    fednova = ("strategy.name=fednova", "local.epochs=2", "local.optimizer=sgd")
    done = run_with(tmp_path / "lying", hostile(lying), 2, *fednova)
    reasons = [event["reason"] for event in done.events("update-left-out")]
    said = "it does not say its steps" if steps is None else f"it says that it took {steps} steps"
    assert reasons == [f"{said}, where its examples make {due_to(BAD, done)}"] * 2
    assert run_with(tmp_path / "refusing", hostile(refusing), 2, *fednova).sha256 == done.sha256


def due_to(site: str, done: Outcome) -> int:
    """Two passes over what the site trains on, the last batch of each being what is left."""
    card = done.folder.info["sites"][site]["label_counts"]["train"]
    return 2 * -(-sum(card.values()) // 4)  # batches of four
