"""Every reason for which an update is left out, with its words; and that a good one passes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedfm.federation.reduction import Reduction
from fedfm.federation.screening import reason_to_leave_out

SENT = {"shared/a": np.zeros((2, 3), np.float32), "text/head": np.zeros(4, np.float32)}


def delta(**changes: np.ndarray | None) -> dict[str, np.ndarray]:
    good = {"shared/a": np.ones((2, 3), np.float32), "text/head": np.ones(4, np.float32)}
    good |= {name.replace("__", "/"): value for name, value in changes.items()}
    return {name: value for name, value in good.items() if value is not None}


HALF_BAD = np.array([[1, np.nan, 1], [np.inf, 1, -np.inf]], np.float32)
CASES = {
    "a tensor is missing": (delta(text__head=None), 5, 0, "1 of 2 tensors are missing, the first is text/head"),
    "nothing came": ({}, 5, 0, "2 of 2 tensors are missing, the first is shared/a"),
    "another domain's tensor": (
        delta(ner__head=np.ones(1, np.float32)), 5, 0,
        "it holds 1 tensors that the site was not sent, the first is ner/head",
    ),
    "wrong shape": (
        delta(shared__a=np.ones((3, 2), np.float32)), 5, 0,
        "shared/a has shape (3, 2) float32, expected (2, 3) float32",
    ),
    "wrong dtype": (
        delta(text__head=np.ones(4, np.float64)), 5, 0, "text/head has shape (4,) float64, expected (4,) float32",
    ),
    "not finite": (delta(shared__a=HALF_BAD), 5, 0, "3 of 10 values are not finite, 3 of them in shared/a"),
    "no examples": (delta(), 0, 0, "it says that it was trained on 0 examples"),
    "negative examples": (delta(), -3, 0, "it says that it was trained on -3 examples"),
    "NaN examples": (delta(), float("nan"), 0, "it says that it was trained on nan examples"),
    "infinite examples": (delta(), float("inf"), 0, "it says that it was trained on inf examples"),
    "too large": (delta(), 5, 3.0, "its norm is 3.162, the limit (screening.max-norm) is 3"),
    "too large for float32": (
        delta(shared__a=np.full((2, 3), 3e38, np.float32)), 5, 1e6,
        "its norm is 7.348e+38, the limit (screening.max-norm) is 1e+06",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_bad_update_is_named_with_its_reason(case):
    """The norm of ten ones is sqrt(10) = 3.162; of six times 3e38, sqrt(6) * 3e38 = 7.348e38."""
    update, examples, limit, reason = CASES[case]
    assert reason_to_leave_out(update, SENT, examples, 0.5, limit) == reason


@pytest.mark.parametrize("limit", [0.0, 3.2])
def test_a_good_update_passes(limit):
    assert reason_to_leave_out(delta(), SENT, 1, 0.5, limit) == ""


def test_of_a_pack_only_rows_that_are_not_finite_stay_out_of_the_mean():
    """Also where the sum of finite values is beyond float32, and where infinities of both signs meet in it."""
    most = float(np.finfo(np.float32).max)
    change = torch.tensor([[1.0, 2.0, 0.0], [most, most, 0.0], [np.inf, -np.inf, 0.0], [0.0, np.nan, 0.0]])
    norms = torch.linalg.vector_norm(change, dim=1, dtype=torch.float64).tolist()
    sites = [(name, n, 1.0, norm) for name, n, norm in zip("abcd", (10, 30, 5, 5), norms, strict=True)]
    order = SimpleNamespace(sites=tuple("abcd"), each=False)
    matrix = SimpleNamespace(unflatten=lambda row: {"w": row})
    reduction = Reduction(order, matrix, {"w": "shared/w"}, max_norm=0.0)
    assert reduction.add(sites, {"delta": change}) == {"a": 0, "b": 1}
    assert {site: reason.partition(",")[0] for site, reason in reduction.left_out.items()} == {
        "c": "2 of 3 values are not finite",
        "d": "1 of 3 values are not finite",
    }
    wanted = (10 * np.array([1.0, 2.0, 0.0]) + 30 * np.array([most, most, 0.0])) / 40
    np.testing.assert_allclose(reduction.arrays()["shared/w"], wanted, rtol=1e-15)
