"""The few operations on named arrays that everything else is made of."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfm import arrays
from fedfm.arrays import RunningMean

A = {"shared/a": np.float32([1.0, 2.0]), "text/b": np.float64([[3.0]])}


def test_add_scaled_by_hand():
    moved = arrays.add_scaled(A, {"shared/a": np.array([1.0, -1.0])}, 2.0)
    assert moved["shared/a"].tolist() == [3.0, 0.0]
    assert moved["shared/a"].dtype == np.float32
    assert moved["text/b"] is A["text/b"]  # not named by the step: as it was
    assert A["shared/a"].tolist() == [1.0, 2.0]  # and nothing in place


def test_add_scaled_rounds_once():
    """1 + 2^-24 in float32 is 1; with a step of 2^-24 three times over it is 1 + 3 * 2^-24 rounded, 1 + 2^-22."""
    step = {"a": np.float32([2.0**-24])}
    assert arrays.add_scaled({"a": np.float32([1.0])}, step)["a"].item() == 1.0
    assert arrays.add_scaled({"a": np.float32([1.0])}, step, 3.0)["a"].item() == 1.0 + 2.0**-22


def test_norm_runs_over_all_tensors_and_does_not_overflow():
    """sqrt(1 + 4 + 9) = 3.7417; 3e38 squared is past float32 and not past float64."""
    assert arrays.norm(A) == pytest.approx(14**0.5)
    assert arrays.norm({"x": np.float32([3e38])}) == pytest.approx(3e38)
    assert arrays.norm({}) == 0.0


def test_non_finite_counts_by_tensor():
    bad = {"good": np.ones(2), "bad": np.array([np.nan, 1, np.inf, -np.inf]), "whole": np.int64([1]), "no": np.empty(0)}
    assert arrays.non_finite(bad) == {"bad": 3}


def test_sizes_and_groups():
    assert arrays.num_bytes(A) == 2 * 4 + 8
    assert arrays.group_of("medical/head.weight") == "medical"
    assert arrays.group_of("shared/body.x/y") == "shared"


def test_the_digest_is_of_names_dtypes_shapes_and_values():
    """Against a digest put together here by hand for one tensor; then one change of each kind."""
    value = np.float32([[1.5, -2.0]])
    by_hand = hashlib.sha256(b"shared/a|<f4|(1, 2)|" + value.tobytes()).hexdigest()
    assert arrays.sha256({"shared/a": value}) == by_hand
    assert arrays.sha256(A) == arrays.sha256(dict(reversed(A.items())))
    table = np.arange(6.0).reshape(2, 3)
    assert arrays.sha256({"shared/a": np.asfortranarray(table)}) == arrays.sha256({"shared/a": table})  # any memory
    changed = [
        {"shared/c": value}, {"shared/a": value.astype(np.float64)}, {"shared/a": value.T}, {"shared/a": -value},
        {"shared/a": value, "shared/b": value},
    ]  # fmt: skip
    assert len({by_hand, *map(arrays.sha256, changed)}) == 6


def test_the_running_mean_by_hand():
    """a: (1 * 2 + 3 * 6) / 4 = 5; b was sent once; c has no weight and so no mean."""
    mean = RunningMean()
    mean.add({"a": np.float32([2.0]), "c": np.float32([1.0])}, 0.0)
    mean.add({"a": np.float32([2.0])}, 1.0)
    mean.add({"a": np.float32([6.0]), "b": np.float32([7.0])}, 3.0)
    assert {name: value.tolist() for name, value in mean.value().items()} == {"a": [5.0], "b": [7.0]}
    assert all(value.dtype == np.float64 for value in mean.value().values())
    assert RunningMean().value() == {}


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(-1e6, 1e6, width=32), st.integers(1, 1000)), min_size=1, max_size=20))
def test_the_running_mean_equals_numpys_average(rows):
    mean = RunningMean()
    sent = [np.float32([value]) for value, _ in rows]
    kept = [array.copy() for array in sent]
    for array, (_, weight) in zip(sent, rows, strict=True):
        mean.add({"a": array}, weight)
    expected = np.average([float(array[0]) for array in sent], weights=[weight for _, weight in rows])
    assert mean.value()["a"].item() == pytest.approx(expected, rel=1e-12, abs=1e-6 * 1e-6)
    assert all(np.array_equal(old, new) for old, new in zip(kept, sent, strict=True))
