"""The process's heap, kept at what one pack of sites needs, however many packs a round has.

Tensors of a step are as long as its texts, so that every pack asks for other sizes than the one before, and glibc's
heap grows by holes that nothing fits into: by a tenth over the first hundreds of sites. What is free goes back to the
system when the process has become larger than packs made it that began with a tidy heap, and not before: glibc would
give back what one step has freed, for the next to ask for it again page by page. From which size on it does is decided
by the largest block that happened to be freed before; from the first pack on both limits stand where that would end.
"""

from __future__ import annotations

import ctypes
import math
import os
import time
from collections.abc import Callable
from functools import cache

GROWTH = 1.03  # over what packs made of a tidy heap; less is not worth the pages that the next step must ask for again
PAGE = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 0
PACKS = 4  # that show what packs need
LIMITS = {-3: 2**25, -1: 2**26}  # mallopt's M_MMAP_THRESHOLD, a block of its own; M_TRIM_THRESHOLD, free at the end
LOOK_SECONDS = 0.05  # at least, from one look to the next: a file of the kernel's is read for each


class Heap:
    """`resident()`: bytes of the process in memory. `trim()`: give what is free back to the system. `clock()`: in
    seconds."""

    def __init__(
        self, resident: Callable[[], int], trim: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ):
        self._resident, self._trim, self._clock = resident, trim, clock
        self._seen, self._needed, self._looked = 0, 0, -math.inf

    def after_pack(self) -> None:
        """To be called when a pack has been trained."""
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked, size = now, self._resident()
        if self._seen < PACKS:
            self._seen, self._needed = self._seen + 1, max(self._needed, size)
        elif size > GROWTH * self._needed:
            self._trim()
            self._seen = self._needed = 0


@cache
def _heap() -> Heap | None:
    """This process's; None where the C library is not glibc: others give back what is free in their own time."""
    try:
        library = ctypes.CDLL(None)
        trim, adjust = library.malloc_trim, library.mallopt
    except (AttributeError, OSError, TypeError):
        return None
    for limit, size in LIMITS.items():
        adjust(limit, size)
    return Heap(_resident, lambda: trim(0))


def _resident() -> int:
    """Bytes of this process in memory, from where Linux, whose C library glibc is, tells it."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(128).split()[1]) * PAGE


def after_pack() -> None:
    """Keep this process's heap tidy; see `Heap`."""
    if heap := _heap():
        heap.after_pack()
