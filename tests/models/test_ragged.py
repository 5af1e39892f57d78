"""Rows of unequal length: as a list of arrays is, and padded as a plain loop would."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedfm.models.ragged import Ragged, pad

ROWS = st.lists(st.lists(st.integers(0, 99), max_size=7), min_size=1, max_size=9)


@given(ROWS)
def test_it_is_a_sequence_of_its_rows(rows):
    ragged = Ragged.of([np.array(row, np.int64) for row in rows])
    assert [row.tolist() for row in ragged] == rows
    assert len(ragged) == len(rows)
    assert ragged.lengths.tolist() == [len(row) for row in rows]
    assert ragged[-1].tolist() == rows[-1]
    with pytest.raises(IndexError):
        ragged[len(rows)]


@given(ROWS, ROWS, st.data())
def test_padding_is_that_of_a_plain_loop(first, second, data):
    parts = []
    chosen = []
    for rows in (first, second):
        if not any(rows):
            continue
        indices = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
        parts.append((Ragged.of([np.array(row, np.int64) for row in rows]), np.array(indices)))
        chosen += [rows[i] for i in indices]
    if not parts:
        return
    table, real = pad(parts, -7)
    longest = max(map(len, chosen))
    assert table.tolist() == [row + [-7] * (longest - len(row)) for row in chosen]
    assert real.tolist() == [[True] * len(row) + [False] * (longest - len(row)) for row in chosen]


def test_rows_of_vectors_are_padded_too():
    ragged = Ragged(np.arange(10.0).reshape(5, 2), np.array([0, 2, 5]))
    table, real = pad([(ragged, np.array([0, 1]))], 0)
    assert table.shape == (2, 3, 2)
    assert table[0].tolist() == [[0, 1], [2, 3], [0, 0]]
    assert real[0].tolist() == [True, True, False]
