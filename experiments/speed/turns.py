"""Turns: the cells of a workload live side by side, but only one computes at a time, round by round (A B A B).

What else the machine does then falls on all cells alike, and a round of one is compared with the round of another that
ran seconds before or after it. The harness holds the other ends of two pipes and says whose turn it is; a cell that is
started by hand has no pipes and takes all of its turns at once.
"""

from __future__ import annotations

import os
import time

import psutil

VARIABLE = "FEDFM_SPEED_PIPES"


class Turns:
    """One cell's side. `begin()` waits for the turn and starts the clocks, `end()` stops them and hands over."""

    def __init__(self) -> None:
        self.walls: list[float] = []
        self.cpus: list[float] = []
        heard, said = os.environ.pop(VARIABLE, "-1,-1").split(",")  # popped: what the cell starts has no turns
        self._heard, self._said = int(heard), int(said)
        for pipe in (self._heard, self._said) if self._heard >= 0 else ():
            os.set_inheritable(pipe, False)

    def begin(self) -> None:
        if self._heard >= 0:
            os.write(self._said, b"r")  # ready
            if not os.read(self._heard, 1):
                raise SystemExit("the harness has gone")
        of_children = children_cpu_seconds()  # looking for them takes milliseconds, which are nobody's work
        self._cpu, self._wall = of_children + time.process_time(), time.perf_counter()

    def end(self) -> None:
        synchronize()
        self.walls.append(time.perf_counter() - self._wall)
        own = time.process_time()  # finer than what the system says of others
        self.cpus.append(own + children_cpu_seconds() - self._cpu)
        if self._said >= 0:
            os.write(self._said, b"d")  # done


def of_rounds(turns: Turns, rounds: int):
    """A listener of fedfm's events that takes the turns. Round 0 is the scoring of the start weights."""

    def listen(event: dict) -> None:
        if event["event"] == "round-finished":
            if event["round"]:
                turns.end()
            if event["round"] < rounds:
                turns.begin()

    return listen


def synchronize() -> None:
    """Wait for what was given to the GPU; without one there is nothing to wait for."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def children_cpu_seconds() -> float:
    """CPU seconds of all processes below this one that still live."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total
