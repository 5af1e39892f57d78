"""What is written into a message is read out of it."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Error, Message, RecordDict

from fedfm import errors
from fedfm.arrays import sha256
from fedfm.domains.card import DomainCard
from fedfm.errors import DataError, Problem, RunError, UserError
from fedfm.federation import messages
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import Answer, Order, SiteCard
from fedfm.federation.wire import size_of
from fedfm.training.metrics import metrics, stack, tally_classification, tally_tags, unstack

CARD = DomainCard("medical", "image-classification", ("benign", "malignant"), (3, 28, 28))
ARRAYS = {
    "shared/half": np.arange(6, dtype=np.float16).reshape(2, 3),
    "shared/turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "medical/wide": np.float64([[0.1, -0.0]]),
    "medical/count": np.asarray(3, np.int64),
    "medical/none": np.zeros((0, 4), np.float32),
    "medical/flag": np.array([True, False]),
}
PACK = ("st-mary", "st-luke")
ORDER = Order(PACK, 4, CARD, '{"seed": 1}', "validation", 8, True, 17.5, "kept/here", rank=4, body="ab")


@pytest.fixture(autouse=True)
def _identity():
    take_identity()


def an_order(kind: str = "train") -> Message:
    order = ORDER
    return messages.write_order(kind, order, messages.to_record(ARRAYS), node=7)


def test_arrays_keep_names_dtypes_shapes_and_bits():
    assert sha256(messages.from_record(messages.to_record(ARRAYS))) == sha256(ARRAYS)


def test_a_record_is_as_large_before_its_arrays_are_bytes_as_after_and_at_the_other_end():
    record = messages.to_record(ARRAYS)
    before = size_of(record), record.count_bytes()
    sent = ArrayRecord.inflate(record.deflate(), record.children)
    assert (size_of(sent), sent.count_bytes()) == before
    list(record.values())
    assert (size_of(record), record.count_bytes()) == before
    assert sha256(messages.from_record(sent)) == sha256(ARRAYS)


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_an_order_is_read_as_it_was_written(kind):
    message = an_order(kind)
    order, arrays = messages.read_order(message)
    assert order == ORDER
    assert sha256(arrays) == sha256(ARRAYS)
    assert message.metadata.message_type == kind
    assert message.metadata.dst_node_id == 7
    assert message.metadata.group_id == "4"


def test_an_answer_is_read_as_it_was_written():
    told = {"loss": [np.float32(0.5), 0.25], "num-examples": [12, 3]}
    sent = Answer(("st-mary", "st-luke"), ARRAYS, told, {"st-luke": "no data"})
    answer = messages.read_answer(messages.write_answer(sent, an_order()))
    assert (answer.sites, answer.left_out, answer.problem) == (sent.sites, {"st-luke": "no data"}, None)
    assert dict(answer.metrics) == {"loss": [0.5, 0.25], "num-examples": [12.0, 3.0]}
    assert sha256(answer.arrays) == sha256(ARRAYS)
    assert answer.num_bytes > sum(array.nbytes for array in ARRAYS.values())  # values and their headers


def test_the_query_and_the_cards_that_answer_it():
    query = messages.write_query('{"rounds": 2}', node=3)
    assert messages.read_query(query) == '{"rounds": 2}'
    cards = [
        SiteCard("a", "medical", "image-classification", ("x", "y"), (1, 8, 9), {"train": {"x": 3}}, "generated", "ab"),
        SiteCard("b", "finance", "text-classification", ("é",), None, {}, "b.csv", "cd", ("3 empty texts",)),
    ]
    assert messages.read_cards(messages.write_cards(cards, query)) == cards
    assert messages.read_cards(messages.write_cards([], query)) == []


@pytest.mark.parametrize("kind", ["UserError", "ConfigError", "DataError", "ModelError", "RunError"])
def test_a_refusal_crosses_with_its_class_and_its_problems(kind):
    problems = [Problem("no label", "a.csv, line 3", "give one"), Problem("empty")]
    sent = getattr(errors, kind)(problems)
    answer = messages.read_answer(messages.write_problem(sent, an_order()))
    assert type(answer.problem) is type(sent)
    assert answer.problem.problems == tuple(problems)
    assert str(answer.problem) == "a.csv, line 3: no label\n    mend: give one\nempty"


def test_a_refusal_of_an_unknown_class_is_a_run_error():
    """A site may not choose what the coordinator raises: `class` is a name in fedfm.errors, an error, or nothing."""
    for name in ("KeyboardInterrupt", "Iterable", "did_you_mean", "difflib", "Problem"):
        reply = messages.write_problem(DataError("x"), an_order())
        reply.content["problem"]["class"] = name
        answer = messages.read_answer(reply)
        assert type(answer.problem) is RunError, name


def test_an_error_of_flower_is_named_by_code_and_reason():
    reply = Message(Error(5, "node unavailable"), reply_to=an_order())
    answer = messages.read_answer(reply)
    assert str(answer.problem) == "no answer (Flower error 5): node unavailable"
    assert not isinstance(answer.problem, UserError)
    with pytest.raises(RunError, match="Flower error 5"):
        messages.read_cards(reply)


def test_an_answer_that_cannot_be_read_is_a_problem_not_a_crash():
    answer = messages.read_answer(Message(RecordDict(), reply_to=an_order()))
    assert isinstance(answer.problem, RunError)
    assert "cannot be read" in str(answer.problem)


def test_a_tally_of_classes_crosses_the_wire_and_adds_there():
    draw = np.random.default_rng(0)
    tallies = [
        tally_classification(draw.dirichlet(np.ones(3), n), draw.integers(0, 3, n), 1.5 * n, with_scores=True)
        for n in (7, 0, 12)
    ]
    crossed = over_the_wire(*tallies)
    labels = ("a", "b", "c")
    here, there = (metrics("image-classification", x + y + z, labels) for x, y, z in (tallies, crossed))
    assert here == there
    assert here["loss"] == 1.5


def test_a_tally_of_tags_crosses_the_wire():
    tags = ("O", "B-ORG", "I-ORG", "B-PER", "I-PER")
    true = [np.array([1, 2, 0, 3]), np.array([0, 0, 1])]
    guess = [np.array([1, 2, 0, 1]), np.array([0, 0, 1])]
    tally = tally_tags(guess, true, tags, 2.0)
    for crossed in over_the_wire(tally, tally):
        assert metrics("token-classification", crossed, tags) == metrics("token-classification", tally, tags)
        assert crossed.num_examples == 2


def test_an_answer_has_one_number_for_each_site():
    answer = messages.read_answer(messages.write_answer(Answer(("a", "b"), {}, {"loss": [0.5]}), an_order()))
    assert "its numbers are not one for each site" in str(answer.problem)


def over_the_wire(*tallies):
    sites = tuple(f"s{i}" for i in range(len(tallies)))
    reply = messages.write_answer(Answer(sites, stack(tallies)), an_order("evaluate"))
    return unstack(messages.read_answer(reply).arrays)
