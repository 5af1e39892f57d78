"""Messages out, replies in: matched by message, put in order, given up after the timeout."""

from __future__ import annotations

import time

import httpx
import pytest
from flwr.app import Error, Message, RecordDict
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

from fedfm.engines.local import LocalGrid
from fedfm.errors import EngineError
from fedfm.federation.exchange import exchange, in_order
from fedfm.federation.flower_private import name_message, take_identity


def echo(message: Message, context) -> Message:
    return Message(RecordDict(), reply_to=message)


def orders(*nodes: int) -> dict[str, Message]:
    take_identity()
    return {f"site-{i}": Message(RecordDict(), dst_node_id=node, message_type="train") for i, node in enumerate(nodes)}


def test_several_sites_of_one_node_each_get_their_own_reply():
    replies = list(exchange(LocalGrid(echo, 2), orders(1, 1, 2, 1), timeout=5))
    assert [key for key, _ in replies] == ["site-0", "site-1", "site-2", "site-3"]
    assert all(reply is not None and not reply.has_error() for _, reply in replies)


def test_one_reply_is_held_at_a_time():
    """The work of the next site begins when its reply is asked for: memory does not grow with the sites."""
    done = []

    def counting(message, context):
        done.append(context.node_id)
        return echo(message, context)

    stream = exchange(LocalGrid(counting, 3), orders(1, 2, 3), timeout=5)
    next(stream)
    assert done == [1]
    next(stream)
    assert done == [1, 2]


class Troubled(LocalGrid):
    """A SuperLink that answers `statuses` before it is well again."""

    def __init__(self, statuses: list[int]):
        super().__init__(echo, 1)
        self.statuses = statuses

    def pull_messages(self, message_ids):
        if self.statuses:
            response = httpx.Response(self.statuses.pop(0), request=httpx.Request("POST", "https://superlink"))
            response.raise_for_status()
        return super().pull_messages(message_ids)


def test_a_superlink_in_trouble_is_asked_again(monkeypatch):
    monkeypatch.setattr("fedfm.federation.exchange.REMOTE_POLL_SECONDS", 0.0)
    ((_, reply),) = exchange(Troubled([500, 503]), orders(1), timeout=5)
    assert not reply.has_error()
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        list(exchange(Troubled([401]), orders(1), timeout=5))
    with pytest.raises(httpx.HTTPStatusError, match="500"):
        list(exchange(Troubled([500] * 1000), orders(1), timeout=5))


class Falling(LocalGrid):
    """A SuperLink that has taken what it was handed, and ends before it says so, `times` times over.

    As Flower's does, it knows a message by its id, and gives it out once.
    """

    def __init__(self, times: int, error: Exception):
        super().__init__(echo, 2)
        self.times, self.error, self.known, self.pushes = times, error, {}, 0

    def push_messages(self, messages):
        self.pushes += 1
        messages = list(messages)
        for message in messages:
            name_message(message, message.object_id)
        ids = [message.metadata.message_id for message in messages]
        new = [message for message, name in zip(messages, ids, strict=True) if name not in self.known]
        self.known |= {m.metadata.message_id: m for m in new}
        if self.pushes <= self.times:
            raise self.error
        return ids

    def pull_messages(self, message_ids):
        return [Message(RecordDict(), reply_to=self.known[name]) for name in message_ids]


LOST = ObjectPushError("0a1b", 7, "session")


def test_a_superlink_that_ends_while_orders_are_pushed_gets_them_again_and_each_site_its_order_once(monkeypatch):
    monkeypatch.setattr("fedfm.federation.exchange.REMOTE_POLL_SECONDS", 0.0)
    grid = Falling(2, LOST)
    replies = list(exchange(grid, orders(1, 2), timeout=5))
    assert [key for key, reply in replies if not reply.has_error()] == ["site-0", "site-1"]
    assert (grid.pushes, len(grid.known)) == (3, 2)  # a message that is pushed again has the id that it had


def test_orders_that_a_superlink_does_not_take_end_the_run_with_a_mend(monkeypatch):
    monkeypatch.setattr("fedfm.federation.exchange.REMOTE_POLL_SECONDS", 0.0)
    grid = Falling(1000, LOST)
    with pytest.raises(EngineError, match=r"did not take the messages(?s:.)*mend: .*fedfm resume RUN"):
        list(exchange(grid, orders(1), timeout=5))
    assert grid.pushes == 30
    with pytest.raises(ValueError, match="ours"):  # no trouble of the SuperLink's
        list(exchange(Falling(1, ValueError("ours")), orders(1), timeout=5))


def test_nothing_is_pushed_again_once_the_superlink_may_have_thrown_away_what_it_had(monkeypatch):
    """With the rest of what was pushed go the orders that sites follow by then: they would be asked twice."""
    monkeypatch.setattr("fedfm.federation.exchange.PUSH_SECONDS", 0.5)  # less than the pause before the next try
    grid = Falling(1, LOST)
    with pytest.raises(EngineError, match="did not take"):
        list(exchange(grid, orders(1), timeout=5))
    assert grid.pushes == 1


class Scripted(LocalGrid):
    """Hands out, pull by pull, the replies to the orders of the given numbers; `None`: an error made by the link."""

    def __init__(self, *script: list[int]):
        super().__init__(echo, 5)
        self.script, self.sent = list(script), []

    def push_messages(self, messages):
        self.sent = list(messages)
        return super().push_messages(self.sent)

    def pull_messages(self, message_ids):
        return [self.answer(self.sent[i]) for i in (self.script.pop(0) if self.script else [])]

    def answer(self, message: Message) -> Message:
        return Message(RecordDict(), reply_to=message)


def test_replies_come_as_they_are_ready_and_those_that_never_do_are_none():
    started = time.monotonic()
    replies = list(exchange(Scripted([2], [], [0, 3]), orders(1, 2, 3, 4, 5), timeout=0.5))
    assert [key for key, reply in replies if reply is not None] == ["site-2", "site-0", "site-3"]
    assert [key for key, reply in replies if reply is None] == ["site-1", "site-4"]
    assert 0.4 < time.monotonic() - started < 5


def test_a_reply_to_no_order_of_ours_is_passed_over():
    """A late reply of an earlier phase is nobody's answer now, and a reply that comes twice counts once."""

    class Stale(Scripted):
        def answer(self, message):
            old = Message(RecordDict(), dst_node_id=1, message_type="train")
            name_message(old, "from-an-earlier-phase")
            return Message(RecordDict(), reply_to=old)

    (pair,) = exchange(Stale([0]), orders(1), timeout=0.2)
    assert pair == ("site-0", None)
    replies = list(exchange(Scripted([0], [0], [1]), orders(1, 2), timeout=5))
    assert [key for key, _ in replies] == ["site-0", "site-1"]


def test_an_error_of_the_link_is_matched_by_message():
    """Errors that the SuperLink makes carry its own node id: only the id of the message says whose they are."""

    class Offline(Scripted):
        def answer(self, message):
            return Message(Error(5, "offline"), reply_to=message)

    replies = dict(exchange(Offline([1], [0]), orders(1, 2), timeout=5))
    assert replies["site-1"].error.reason == "offline"


@pytest.mark.parametrize("arrival", ["abcd", "dcba", "bdac"])
def test_in_order_waits_for_the_next_one(arrival):
    given = ((key, key.upper()) for key in arrival)
    assert list(in_order(given, "abcd")) == [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")]


def test_in_order_holds_back_no_more_than_it_must():
    taken = []

    def arrivals():
        for key in "bac":
            taken.append(key)
            yield key, None

    stream = in_order(arrivals(), "abc")
    assert next(stream)[0] == "a"
    assert taken == ["b", "a"]
    assert next(stream)[0] == "b"
    assert taken == ["b", "a"]
