"""Messages out, replies in: one loop for every Grid."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

from fedfm.errors import EngineError
from fedfm.federation.flower_private import PUSH_SECONDS, is_lost_push, is_trouble_of_superlink

POLL_SECONDS = 0.1
REMOTE_POLL_SECONDS = 1.0  # of a SuperLink, to which each look is a request, and whose nodes look every 3 s themselves
PULLS = 30
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


def exchange(
    grid: Grid, orders: Mapping[K, Message], timeout: float, meanwhile: Callable[[], None] = lambda: None,
    given_up: dict[str, K] | None = None, poll_seconds: float = POLL_SECONDS,
) -> Iterator[tuple[K, Message | None]]:  # fmt: skip
    """Send the orders (key -> message) and yield (key, reply) as replies come; None for those that never do.

    Who has not answered when no reply at all has come for `timeout` seconds is given up. Replies are matched by the id
    of the message they answer, not by node: several sites may share a node, and errors made by the SuperLink carry its
    own id. A grid that works only when asked (the in-process one) does the next piece of work when the next reply is
    wanted, so that one reply is held at a time.

    `meanwhile` is called while there is nothing to do but wait. `given_up` takes the ids of the messages that were
    given up, with their keys: what comes of them later is late.
    """
    ids = push(grid, list(orders.values()))
    waiting = dict(zip(ids, orders, strict=True))
    silent_since = time.monotonic()
    while waiting and time.monotonic() - silent_since < timeout:
        replies = pull(grid, list(waiting))
        for reply in replies:
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                yield key, reply
        if replies:
            silent_since = time.monotonic()
        else:
            meanwhile()
            time.sleep(poll_seconds)
    if given_up is not None:
        given_up |= waiting
    for key in waiting.values():
        yield key, None


def push(grid: Grid, messages: Sequence[Message]) -> list[str]:
    """Hand the messages in; their ids. Where a SuperLink ends or is in trouble meanwhile, they are handed in anew.

    That asks nobody twice: a message's id is the digest of what it says, and SuperLink, which keeps messages by id,
    neither takes one again that it has nor gives one out again. But what was handed in in part it throws away whole
    after `PUSH_SECONDS`, orders that sites already follow among it: from then on nothing is handed in anew.
    Raises EngineError.
    """
    started = time.monotonic()
    for again in range(PULLS, 0, -1):
        try:
            return list(grid.push_messages(messages))
        except Exception as error:
            if not (is_lost_push(error) or is_trouble_of_superlink(error)):
                raise
            last = error
        if again == 1 or time.monotonic() - started + REMOTE_POLL_SECONDS >= PUSH_SECONDS:
            break
        time.sleep(REMOTE_POLL_SECONDS)
    what = f"the SuperLink did not take the messages to the sites ({type(last).__name__}: {last})"
    raise EngineError(what, mend="when it is up again: fedfm resume RUN, which repeats the round") from last


def pull(grid: Grid, ids: Sequence[str]) -> list[Message]:
    """The replies that are there. A SuperLink that says that it is in trouble (its database is busy) is asked again."""
    for again in range(PULLS, 0, -1):
        try:
            return list(grid.pull_messages(ids))
        except Exception as error:
            if again == 1 or not is_trouble_of_superlink(error):
                raise
        time.sleep(REMOTE_POLL_SECONDS)
    return []


def late(grid: Grid, given_up: dict[str, K]) -> list[K]:
    """Keys of given-up messages whose answers have come after all: thrown away, and taken out of `given_up`."""
    replies = pull(grid, list(given_up)) if given_up else []
    came = [(given_up.pop(reply.metadata.reply_to_message_id, None), reply.has_error()) for reply in replies]
    return [key for key, is_error in came if key is not None and not is_error]


def in_order(pairs: Iterator[tuple[K, T]], keys: Sequence[K]) -> Iterator[tuple[K, T]]:
    """The pairs in the order of `keys`; what comes early waits.

    Sums of floating-point numbers depend on their order, and the order in which sites finish is chance.
    """
    early: dict[K, T] = {}
    wanted = iter(keys)
    nearest = next(wanted, None)
    for key, value in pairs:
        early[key] = value
        while nearest in early:
            yield nearest, early.pop(nearest)
            nearest = next(wanted, None)
