"""Which worker does what: by predicted seconds, learned while a run goes. Placement never changes a result."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping


class Paces:
    """Seconds for a unit of work, learned for each kind of order (its type and its domain)."""

    MEMORY = 0.7  # weight of what was known before against the newest measurement

    def __init__(self) -> None:
        self._known: dict[str, float] = {}

    def learn(self, kind: str, work: float, seconds: float) -> None:
        """Take in how long an order took."""
        pace = seconds / max(work, 1.0)
        before = self._known.get(kind, pace)
        self._known[kind] = self.MEMORY * before + (1 - self.MEMORY) * pace

    def seconds(self, kind: str, work: float) -> float:
        """How long an order will take; of a kind that was never seen, as slow as the slowest that was."""
        pace = self._known.get(kind, max(self._known.values(), default=1.0))
        return pace * max(work, 1.0)


def longest_first(seconds: Mapping[str, float], workers: int) -> list[deque[str]]:
    """A queue for each worker: the longest job first, each to the worker with the least to do.

    Graham, "Bounds on Multiprocessing Timing Anomalies", 1969: never more than 4/3 of the best makespan. The same jobs
    of the same lengths get the same places, so that a site's data tend to be where they were.
    """
    queues: list[deque[str]] = [deque() for _ in range(workers)]
    loads = [0.0] * workers
    for name in sorted(seconds, key=lambda name: -seconds[name]):  # a stable sort: equal ones in the order given
        worker = loads.index(min(loads))
        queues[worker].append(name)
        loads[worker] += seconds[name]
    return queues


def take(queues: list[deque[str]], worker: int, seconds: Mapping[str, float]) -> str | None:
    """The next job of a worker: its own longest, or the last of whoever has most left to do."""
    if queues[worker]:
        return queues[worker].popleft()
    fullest = max(queues, key=lambda queue: sum(seconds[name] for name in queue))
    return fullest.pop() if fullest else None
