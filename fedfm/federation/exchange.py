"""Messages out, replies in: one loop for every Grid."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

from flwr.app import Message
from flwr.serverapp import Grid

POLL_SECONDS = 0.1
T = TypeVar("T")


def exchange(grid: Grid, orders: Mapping[str, Message], timeout: float) -> Iterator[tuple[str, Message | None]]:
    """Send the orders (key -> message) and yield (key, reply) as replies come; None for those that never do.

    Who has not answered when no reply at all has come for `timeout` seconds is given up. Replies are matched by the id
    of the message they answer, not by node: several sites may share a node, and errors made by the SuperLink carry its
    own id. A grid that works only when asked (the in-process one) does the next piece of work when the next reply is
    wanted, so that one reply is held at a time.
    """
    ids = list(grid.push_messages(orders.values()))
    waiting = dict(zip(ids, orders, strict=True))
    silent_since = time.monotonic()
    while waiting and time.monotonic() - silent_since < timeout:
        replies = list(grid.pull_messages(list(waiting)))
        for reply in replies:
            key = waiting.pop(reply.metadata.reply_to_message_id, None)
            if key is not None:
                yield key, reply
        if replies:
            silent_since = time.monotonic()
        else:
            time.sleep(POLL_SECONDS)
    for key in waiting.values():
        yield key, None


def in_order(pairs: Iterator[tuple[str, T]], keys: Sequence[str]) -> Iterator[tuple[str, T]]:
    """The pairs in the order of `keys`; what comes early waits.

    Sums of floating-point numbers depend on their order, and the order in which sites finish is chance.
    """
    early: dict[str, T] = {}
    wanted = iter(keys)
    nearest = next(wanted, None)
    for key, value in pairs:
        early[key] = value
        while nearest in early:
            yield nearest, early.pop(nearest)
            nearest = next(wanted, None)
