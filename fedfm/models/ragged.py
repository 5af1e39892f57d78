"""Rows of unequal length in one array: token ids, tags, and what frozen layers make of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Ragged(Sequence):
    """Row i is `values[starts[i] : starts[i + 1]]`. values: [T] or [T, H]; starts: int64 [N + 1]."""

    values: np.ndarray
    starts: np.ndarray

    @classmethod
    def of(cls, rows: Iterable[np.ndarray], dtype: type = np.int64) -> Ragged:
        """From arrays, one for each row."""
        rows = [np.asarray(row, dtype) for row in rows]
        values = np.concatenate(rows) if rows else np.zeros(0, dtype)
        return cls(values, np.cumsum([0, *map(len, rows)]))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        if not -len(self) <= i < len(self):
            raise IndexError(i)
        i %= len(self)
        return self.values[self.starts[i] : self.starts[i + 1]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """int64 [N]."""
        return np.diff(self.starts)


def pad(parts: Sequence[tuple[Ragged, np.ndarray]], fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of several Ragged, as (it, indices) pairs, in one table `[N, S]` or `[N, S, H]`, S that of the longest.

    Also returns which places hold values, bool [N, S]; the others hold `fill`. One gather for each part, none for
    each row: this runs in every step of every site.
    """
    lengths = np.concatenate([rows.lengths[indices] for rows, indices in parts])
    places = np.arange(max(lengths.tolist(), default=0))  # of a batch's few numbers: a reduction of numpy takes longer
    at = np.concatenate([rows.starts[indices] for rows, indices in parts])[:, None] + places
    values = parts[0][0].values
    table = np.empty((*at.shape, *values.shape[1:]), values.dtype)
    first = 0
    for rows, indices in parts:  # straight to its place: of hidden states a second copy would cost as much as the first
        last = first + len(indices)
        rows.values.take(at[first:last], 0, table[first:last], "clip")  # np.take would first ask what it is, every time
        first = last
    real = places < lengths[:, None]
    if not real.all():
        table[~real] = fill
    return table, real
