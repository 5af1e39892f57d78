"""How far the update of each site points where the mean of all does."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedfm.arrays import Arrays, RunningMean, num_bytes
from fedfm.strategies import Update
from fedfm.strategies.base import mean_of_domains

IN_MEMORY = 2**22  # bytes of updates that wait for the mean in memory; what is more waits in a file
MOST_BYTES = 2**28  # of a round whose updates are more than this nothing is said


class Waiting(NamedTuple):
    """An update whose values wait."""

    site: str
    domain: str
    num_examples: int
    names: tuple[str, ...]


class Vectors:
    """Vectors in the order in which they come: the first `IN_MEMORY` bytes as they are, what is more in a file."""

    def __init__(self, folder: Path | None = None):
        self._held: list[np.ndarray] = []
        self._filed: list[tuple[np.dtype, int]] = []
        self._folder, self._file, self._bytes = folder, None, 0

    def add(self, vector: np.ndarray) -> None:
        self._bytes += vector.nbytes
        if self._bytes <= IN_MEMORY:
            self._held.append(vector)
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (`close` closes it)
        self._file.write(vector.data)
        self._filed.append((vector.dtype, vector.nbytes))

    def __iter__(self) -> Iterator[np.ndarray]:
        yield from self._held
        if self._file is not None:
            self._file.seek(0)
            for dtype, size in self._filed:
                yield np.frombuffer(self._file.read(size), dtype)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


class Alignment:
    """Takes the updates of a round one at a time; memory does not grow with their number.

    Nothing is said of packs, whose means have no single sites to compare. `folder`: where the file may lie.
    """

    def __init__(self, domain_weights: Mapping[str, float], folder: Path | None = None):
        self._domain_weights = domain_weights
        self._means: dict[str, RunningMean] = {}
        self._waiting: list[Waiting] = []
        self._values = Vectors(folder)
        self._bytes, self._is_wanted = 0, True

    def __enter__(self) -> Alignment:
        return self

    def __exit__(self, *_: object) -> None:
        self._values.close()

    def take(self, update: Update) -> None:
        self._bytes += num_bytes(update.delta)
        self._is_wanted = self._is_wanted and self._bytes <= MOST_BYTES and "+" not in update.site
        if not self._is_wanted:
            return
        self._means.setdefault(update.domain, RunningMean()).add(update.delta, update.num_examples)
        names = tuple(update.delta)
        self._values.add(_vector(update.delta, names))
        self._waiting.append(Waiting(update.site, update.domain, update.num_examples, names))

    def cosines(self) -> list[tuple[Waiting, float]]:
        """The cosine of each update to the two-level mean of all, over the tensors that it holds.

        NaN where one of the two is zero.
        """
        if not self._is_wanted:
            return []
        mean = mean_of_domains({d: self._means[d].value() for d in sorted(self._means)}, self._domain_weights)
        found = []
        names, own, length, wide = (), np.zeros(0), 0.0, np.zeros(0)
        for update, values in zip(self._waiting, self._values, strict=True):
            if update.names != names:  # as vectors: a thousand sites with thirty tensors are thirty thousand calls
                names, own = update.names, _vector(mean, update.names)
                length = math.sqrt(own @ own)
            if values.size > wide.size:  # used again: to ask for fresh memory each time costs more than the products
                wide = np.empty(values.size)
            vector = wide[: values.size]
            vector[:] = values
            size = math.sqrt(vector @ vector) * length
            found.append((update, float(vector @ own) / size if size > 0 else math.nan))
        return found


def _vector(arrays: Arrays, names: Sequence[str]) -> np.ndarray:
    """All values one after the other, in the widest of their dtypes."""
    return np.concatenate([arrays[name].ravel() for name in names] or [np.zeros(0)])
