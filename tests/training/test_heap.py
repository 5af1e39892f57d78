"""When the process gives memory back: after it has grown beyond what packs made of a tidy heap, and never else."""

from __future__ import annotations

import ctypes
import itertools
import subprocess
import sys

import pytest

from fedfm.training.heap import GROWTH, PACKS, Heap


def trims_of(sizes: list[float]) -> list[int]:
    """The packs after which a heap is trimmed that has these sizes in turn."""
    trimmed: list[int] = []
    now = [0]
    heap = Heap(lambda: int(sizes[now[0]]), lambda: trimmed.append(now[0]), itertools.count().__next__)
    for now[0] in range(len(sizes)):
        heap.after_pack()
    return trimmed


def test_packs_that_stay_as_they_are_cost_nothing():
    assert trims_of([100, 90, 102, 100, *[100, 103, 105] * 50]) == []  # 105 is within 3 % of the largest of the first


def test_growth_is_given_back_and_what_packs_need_is_looked_at_anew():
    first, wider = [100.0] * PACKS, [200.0] * PACKS
    assert trims_of([*first, 100 * GROWTH, 104]) == [PACKS + 1]
    assert trims_of([*first, 104, *wider, 205]) == [PACKS]  # 200 is what wider packs need of a tidy heap
    assert trims_of([*first, 104, *wider, 205, 207]) == [PACKS, 2 * PACKS + 2]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_a_process_full_of_holes_becomes_small_again():
    """Half of 200 MB in small pieces is freed, every other piece: the system has it back only after a trim."""
    code = """
import psutil
import fedfm.training.heap
from fedfm.training.heap import PACKS, after_pack
fedfm.training.heap.LOOK_SECONDS = 0
resident = lambda: psutil.Process().memory_info().rss / 2**20
for _ in range(PACKS):
    after_pack()
held = [bytes(50_000) for _ in range(4_000)]
held[::2] = [None] * 2_000
before = resident()
after_pack()
print(before, resident())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    before, after = map(float, done.stdout.split())
    assert before > 180 and after < before - 60


def test_many_short_packs_are_looked_at_once():
    """A look reads a file of the kernel's: of packs of a millisecond it would be a tenth of the work."""
    looks, counts = [], []
    heap = Heap(lambda: looks.append(1) or 100, lambda: None, iter([1.0, 1.01, 1.049, 1.051, 1.1, 1.2]).__next__)
    for _ in range(6):
        heap.after_pack()
        counts.append(len(looks))
    assert counts == [1, 1, 1, 2, 2, 3]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_a_step_frees_is_there_for_the_next():
    """Twenty blocks of 1 MB at each step: 5,000 pages, for which the system is asked once."""
    code = """
import resource
import numpy as np
from fedfm.training.heap import after_pack
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
after_pack()
for _ in range(5):
    step = [np.ones(2**17) for _ in range(20)]
    del step
    before = faults()
step = [np.ones(2**17) for _ in range(20)]
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 100
