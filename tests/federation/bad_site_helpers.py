"""What may be wrong with the update of a site."""

from __future__ import annotations

import numpy as np

BAD = "finance-2"


def first_value(delta, value):
    name = min(delta)
    spoilt = delta[name].copy()
    spoilt.flat[0] = value
    return delta | {name: spoilt}


def without_first(delta):
    return {name: value for name, value in delta.items() if name != min(delta)}


def turned(delta):
    return delta | {"shared/" + n.partition("/")[2]: v.T.copy() for n, v in delta.items() if n.endswith("lora_A")}


SPOILT = {
    "NaN": (lambda d: first_value(d, np.nan), "values are not finite, 1 of them in finance/head.bias"),
    "infinite": (lambda d: first_value(d, -np.inf), "values are not finite"),
    "missing tensor": (without_first, "tensors are missing, the first is finance/head.bias"),
    "wrong shape": (turned, "lora_A has shape (128, 8) float32, expected (8, 128) float32"),
    "wrong dtype": (lambda d: {n: v.astype(np.float16) for n, v in d.items()}, "float16, expected"),
    "foreign tensor": (
        lambda d: d | {"medical/head.bias": np.zeros(4, np.float32)},
        "it holds 1 tensors that the site was not sent, the first is medical/head.bias",
    ),
    "absurd norm": (
        lambda d: {n: 1e6 * v for n, v in d.items()}, "the limit (screening.max-norm) is 100",
    ),
}  # fmt: skip
