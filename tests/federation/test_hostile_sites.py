"""A site that means harm: in each round of one run it tries something else, and the run is that of the others alone.

What a message holds is made here byte by byte, as somebody would who has no fedfm. In round r the site `finance-2`
plays the r-th of the attacks below in place of its honest update; a run in which it only refuses has the same weights.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from federation_helpers import IMAGES, TEXTS, Outcome, outcome, tiny
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedfm.engines.local import LocalGrid
from fedfm.errors import DataError, RunError
from fedfm.federation.client_app import app
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import read_answer, read_cards, read_order, write_problem
from fedfm.federation.rounds import RoundLoop
from fedfm.federation.wire import from_record, to_record
from fedfm.results.audit import read_chain
from fedfm.results.run_folder import RunFolder

BAD = "finance-2"
UNPICKLED: list[str] = []
Attack = Callable[[Message], RecordDict]


def leave_mark() -> None:
    UNPICKLED.append("boom")


class Bomb:
    """Unpickled it leaves a mark."""

    def __reduce__(self):
        return leave_mark, ()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f4") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def with_arrays(change: Callable[[ArrayRecord], None]) -> Attack:
    def attack(reply: Message) -> RecordDict:
        change(reply.content["arrays"])
        return reply.content

    return attack


def with_array(array: Callable[[Array], Array]) -> Attack:
    """The first tensor of the update becomes something else."""

    def change(record: ArrayRecord) -> None:
        name = min(record)
        record[name] = array(record[name])

    return with_arrays(change)


def with_numbers(**numbers: float) -> Attack:
    def attack(reply: Message) -> RecordDict:
        told = {name.replace("_", "-"): [float(value)] for name, value in numbers.items()}
        reply.content["metrics"] = MetricRecord({**reply.content["metrics"], **told})
        return reply.content

    return attack


def with_record(name: str, record) -> Attack:
    def attack(reply: Message) -> RecordDict:
        reply.content[name] = record(reply.content) if callable(record) else record
        return reply.content

    return attack


def more(name: str, values: np.ndarray) -> Attack:
    return with_arrays(lambda record: record.update({name: to_record({name: values})[name]}))


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


def hostile(play: Callable[[int, Message, Message], Message]):
    """A node app whose bad site answers its training order of round r with `play(r, order message, honest reply)`."""

    def node_app(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "train" and (order := read_order(message)[0]).sites == (BAD,):
            return play(order.round, message, reply)
        return reply

    return node_app


def run_with(folder: Path, node_app, rounds: int, *overrides: str, images: bool = False) -> Outcome:
    """The coordinator keeps a record of the messages, as it does across machines."""
    images = {"medical": IMAGES | {"sites": 1, "max-examples": 12}} if images else {}
    config = tiny(folder, f"rounds={rounds}", *overrides, finance=TEXTS | {"sites": 2}, **images)
    config = config.model_copy(update={"engine": config.engine.model_copy(update={"superlink": "net"})})
    run = RunFolder.create(config)
    RoundLoop(LocalGrid(node_app, len(config.sites())), config, run).run()
    return outcome(run)


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

    def refusing(round: int, message: Message, reply: Message) -> Message:
        return write_problem(DataError("no"), message)

    assert (
        run_with(tmp_path / "refusing", hostile(refusing), len(attacks), "evaluation.every=100").sha256 == done.sha256
    )


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
