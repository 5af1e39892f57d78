"""Placement of orders on workers: pure functions."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fedfm.engines.placing import Paces, longest_first, take

SECONDS = st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0.01, 100), max_size=30)


@given(SECONDS, st.integers(1, 5))
def test_every_job_is_in_one_queue_and_no_worker_waits_long(seconds, workers):
    queues = longest_first(seconds, workers)
    assert sorted(name for queue in queues for name in queue) == sorted(seconds)
    loads = [sum(seconds[name] for name in queue) for queue in queues]
    best = max(sum(seconds.values()) / workers, max(seconds.values(), default=0))
    assert max(loads) <= 2 * best + 1e-9  # what every list schedule keeps; longest first keeps 4/3
    assert all(seconds[a] >= seconds[b] for queue in queues for a, b in zip(queue, list(queue)[1:], strict=False))


def test_longest_first_on_a_known_case():
    """5, 4, 3, 3, 3 on two workers: 5 and 3, 4 and 3, and the last 3 to the one with 7."""
    seconds = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 3.0, "e": 3.0}
    assert list(longest_first({"local-9": 1.0, "local-10": 1.0}, 1)[0]) == ["local-9", "local-10"]
    assert [list(queue) for queue in longest_first(seconds, 2)] == [["a", "d"], ["b", "c", "e"]]


def test_who_is_done_takes_the_last_of_the_fullest():
    seconds = {"a": 5.0, "b": 4.0, "c": 3.0, "d": 3.0, "e": 3.0}
    queues = longest_first(seconds, 2)
    assert [take(queues, 0, seconds) for _ in range(3)] == ["a", "d", "e"]
    assert [take(queues, 1, seconds) for _ in range(3)] == ["b", "c", None]


def test_paces_are_learned_for_each_kind():
    paces = Paces()
    assert paces.seconds("train a", 10) == 10.0  # nothing is known: work alone
    paces.learn("train a", 100, 50.0)
    assert paces.seconds("train a", 10) == 5.0
    assert paces.seconds("train b", 10) == 5.0  # as slow as the slowest that was seen
    paces.learn("train a", 100, 150.0)
    assert paces.seconds("train a", 10) == 0.7 * 5.0 + 0.3 * 15.0
