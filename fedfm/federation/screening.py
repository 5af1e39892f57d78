"""Is an update fit to be averaged? One NaN in one tensor of one site would make the mean NaN for all."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fedfm.arrays import non_finite, norm


def reason_to_leave_out(
    delta: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    num_examples: float,
    loss: float,
    max_norm: float,
    dtype: np.dtype | None = None,
) -> str:
    """Why an update must not be used, in a sentence; '' when it may.

    `expected`: the tensors that the site was sent. `dtype`: what the values must have; by default what was sent.
    """
    missing, foreign = sorted(expected.keys() - delta.keys()), sorted(delta.keys() - expected.keys())
    if missing:
        return f"{len(missing)} of {len(expected)} tensors are missing, the first is {missing[0]}"
    if foreign:
        return f"it holds {len(foreign)} tensors that the site was not sent, the first is {foreign[0]}"
    for name, value in delta.items():
        want = expected[name]
        if value.shape != want.shape or value.dtype != (dtype or want.dtype):
            return f"{name} has shape {value.shape} {value.dtype}, expected {want.shape} {dtype or want.dtype}"
    bad = non_finite(delta)
    if bad:
        name, count = next(iter(bad.items()))
        total = sum(value.size for value in delta.values())
        return f"{sum(bad.values())} of {total} values are not finite, {count} of them in {name}"
    if not num_examples >= 1 or not np.isfinite(num_examples):
        return f"it says that it was trained on {num_examples:g} examples"
    if max_norm and (size := norm(delta)) > max_norm:
        return f"its norm is {size:.4g}, the limit (screening.max-norm) is {max_norm:g}"
    if not math.isfinite(loss):
        return "its training loss is not finite"
    return ""
