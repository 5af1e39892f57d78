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
Shapes = tuple[tuple[str, tuple[int, ...]], ...]  # of the tensors of an update, in its order


class Waiting(NamedTuple):
    """An update whose values wait: whose it is, and how to read them."""

    site: str
    domain: str
    num_examples: int
    shapes: Shapes
    dtype: np.dtype
    num_bytes: int


class Alignment:
    """Takes the updates of a round one at a time; memory does not grow with their number.

    Nothing is said of packs, whose means have no single sites to compare. `folder`: where the file may lie.
    """

    def __init__(self, domain_weights: Mapping[str, float], folder: Path | None = None):
        self._domain_weights = domain_weights
        self._waiting: list[Waiting] = []
        self._file = tempfile.SpooledTemporaryFile(IN_MEMORY, dir=folder)  # noqa: SIM115 (__exit__ closes it)
        self._bytes, self._is_wanted = 0, True

    def __enter__(self) -> Alignment:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, update: Update) -> None:
        self._bytes += num_bytes(update.delta)
        self._is_wanted = self._is_wanted and self._bytes <= MOST_BYTES and "+" not in update.site
        if not self._is_wanted:
            return
        shapes = tuple((name, value.shape) for name, value in update.delta.items())
        values = _vector(update.delta, tuple(update.delta))
        self._file.write(values.data)
        of_site = update.site, update.domain, update.num_examples
        self._waiting.append(Waiting(*of_site, shapes, values.dtype, values.nbytes))

    def cosines(self) -> list[tuple[Waiting, float]]:
        """The cosine of each update to the two-level mean of all, over the tensors that it holds.

        NaN where one of the two is zero.
        """
        if not self._is_wanted:
            return []
        mean, found = self._mean(), []
        shapes, own, length = None, np.zeros(0), 0.0
        for update, vector in self._vectors():
            if update.shapes != shapes:
                shapes, own = update.shapes, _vector(mean, [name for name, _ in update.shapes])
                length = math.sqrt(own @ own)
            size = math.sqrt(vector @ vector) * length
            found.append((update, float(vector @ own) / size if size > 0 else math.nan))
        return found

    def _mean(self) -> Arrays:
        """The two-level mean of all. As vectors: a thousand sites with thirty tensors are thirty thousand sums."""
        sums: dict[tuple[str, Shapes], tuple[np.ndarray, float]] = {}
        product = np.empty(0)
        for update, vector in self._vectors():
            key = update.domain, update.shapes
            total, before = sums[key] if key in sums else (np.zeros(vector.size), 0.0)
            product = _at_least(vector.size, product)
            total += np.multiply(vector, update.num_examples, out=product[: vector.size])
            sums[key] = total, before + update.num_examples
        means: dict[str, RunningMean] = {}
        for (domain, shapes), (total, weight) in sums.items():
            means.setdefault(domain, RunningMean()).add(_by_name(total / weight, shapes), weight)
        return mean_of_domains({domain: mean.value() for domain, mean in means.items()}, self._domain_weights)

    def _vectors(self) -> Iterator[tuple[Waiting, np.ndarray]]:
        """Each update, in float64, in memory that is used again for the next."""
        self._file.seek(0)
        wide = np.empty(0)
        for update in self._waiting:
            values = np.frombuffer(self._file.read(update.num_bytes), update.dtype)
            wide = _at_least(values.size, wide)
            wide[: values.size] = values
            yield update, wide[: values.size]


def _at_least(size: int, memory: np.ndarray) -> np.ndarray:
    """Float64 memory of that size: to ask the system for fresh pages each time costs more than the arithmetic."""
    return memory if memory.size >= size else np.empty(size)


def _by_name(vector: np.ndarray, shapes: Shapes) -> Arrays:
    """The inverse of `_vector`."""
    parts = np.split(vector, np.cumsum([math.prod(shape) for _, shape in shapes], dtype=int))  # the last one is empty
    return {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes, strict=False)}


def _vector(arrays: Arrays, names: Sequence[str]) -> np.ndarray:
    """All values one after the other, in the widest of their dtypes."""
    return np.concatenate([arrays[name].ravel() for name in names] or [np.zeros(0)])
