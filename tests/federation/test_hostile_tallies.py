"""Tallies and cards of a site that means harm, and bytes that only look like harm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from hostile_helpers import BAD, Attack, more, npy, run_with, with_arrays

from fedfm.errors import RunError
from fedfm.federation.client_app import app
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import read_answer, read_cards, read_order
from fedfm.federation.wire import from_record, to_record


def tally_with(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Attack:
    def change_record(record: ArrayRecord) -> None:
        record[name] = to_record({name: change(from_record(record)[name])})[name]

    return with_arrays(change_record)


def negative(counts: np.ndarray) -> np.ndarray:
    flat = counts.copy().reshape(-1)
    flat[:2] = flat[0] + 5, flat[1] - 5
    return flat.reshape(counts.shape)


TALLIES: dict[str, tuple[str, Attack, str]] = {
    "negative counts": (BAD, tally_with("counts/confusion", negative), "it holds negative counts"),
    "more examples than it holds": (
        BAD, tally_with("num_examples", lambda n: n + 10**6), "but the site holds"
    ),
    "counts of nothing": (
        BAD, tally_with("counts/confusion", lambda c: c * 3), "and says that it scored"
    ),
    "counts in floats": (BAD, tally_with("counts/confusion", lambda c: c / 1.0), "expected confusion"),
    "other counts": (BAD, more("counts/x", np.zeros((1, 3), np.int64)), "it counts confusion"),
    "classes that are none": (
        BAD, with_arrays(lambda r: r.update(to_record({
            "scores/class-9": np.zeros((0, 4), np.float32), "rows/class-9": np.zeros(1, np.int64),
        }))), "its probabilities are of 1 classes, expected 0",
    ),
    "probabilities of others": (
        "medical-1", tally_with("scores/class-0", lambda s: np.concatenate([s, s[:1]]) if len(s) else s), "",
    ),
    "oversized": (BAD, more("counts/x", np.zeros((1, 2**21), np.int64)), "and what was asked for is at most"),
}  # fmt: skip


@pytest.mark.parametrize("name", TALLIES)
def test_a_tally_that_cannot_be_is_not_counted(tmp_path, name):
    """The domain is scored by its other site; the weights are those of the honest run."""
    site, attack, reason = TALLIES[name]

    def node_app(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "evaluate":
            order, _ = read_order(message)
            if order.sites == (site,) and order.round == 1:
                return Message(attack(reply), reply_to=message)
        return reply

    done = run_with(tmp_path, node_app, 1, images=site == "medical-1")
    warned = [e["message"] for e in done.events("warning") if f"score of site {site}: " in e["message"]]
    assert reason in warned[0]
    assert done.folder.info["status"] == "finished"
    scored = done.folder.metrics.query("round == 1 and scope == 'site' and metric != 'loss'")
    assert site not in set(scored[scored["split"] == "validation"]["name"])


@pytest.mark.parametrize(
    "cards",
    ["{", "[1]", '[{"site": "a"}]', '[{"site": ["a"], "labels": 3, "warnings": null}]', "[" + " " * 2**20 + "]", "7"],
)
def test_a_card_that_is_none_is_an_error_with_a_sentence(cards):
    take_identity()
    query = Message(RecordDict(), 1, "query")
    reply = Message(RecordDict({"cards": ConfigRecord({"json": cards})}), reply_to=query)
    with pytest.raises(RunError, match="a node's card cannot be read"):
        read_cards(reply)


def test_arrays_of_another_numpy_are_read_without_being_trusted():
    """A header of another padding, and values in Fortran's order, are those of `np.save` of some version."""
    take_identity()
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)}      \n"
    padded = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values.tobytes()
    record = ArrayRecord()
    record["a"] = Array("float32", (2, 3), "numpy.ndarray", padded)
    record["b"] = Array("float32", (2, 3), "numpy.ndarray", npy(np.asfortranarray(values)))
    for read in from_record(record).values():
        np.testing.assert_array_equal(read, values)


def test_an_error_of_a_hostile_class_is_an_error_of_ours():
    take_identity()
    order = Message(RecordDict(), 1, "train")
    record = ConfigRecord({"class": "did_you_mean", "problems": '[{"what": "x"}]'})
    answer = read_answer(Message(RecordDict({"problem": record}), reply_to=order))
    assert type(answer.problem) is RunError
