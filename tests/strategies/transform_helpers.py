"""Updates to send through transforms."""

from __future__ import annotations

import numpy as np
import pytest

from fedfm.arrays import Arrays
from fedfm.strategies.transforms import (
    Transform,
    chain,
    clip,
    fp16,
    gaussian,
    qsgd,
    sign,
    top_k,
)  # fmt: skip

SHAPES = {"shared/b": (3, 5), "finance/head": (7,), "shared/scalar": (), "shared/empty": (0, 4), "ner/one": (1,)}
ENTRIES = 24
MADE: dict[str, Transform] = {
    "fp16": fp16(),
    "qsgd 8": qsgd(8),
    "qsgd 4": qsgd(4),
    "qsgd 2": qsgd(2),
    "top-k": top_k(0.1),
    "top-k all": top_k(1.0),
    "sign": sign(),
    "clip": clip(0.5),
    "gaussian": gaussian(0.1),
    "chain": chain(clip(1.0), gaussian(0.1), qsgd(4)),
}
NOISY = ("gaussian", "chain")
every = pytest.mark.parametrize("transform", MADE.values(), ids=MADE)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw_update(seed: int = 1, dtype=np.float64) -> Arrays:
    draw = generator(seed)
    return {name: np.asarray(draw.standard_normal(shape), dtype) for name, shape in SHAPES.items()}


def through(transform: Transform, arrays: Arrays, seed: int = 0) -> Arrays:
    return transform.decode(transform.encode(arrays, generator(seed)), arrays)


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.asarray(arrays[name], np.float64).ravel() for name in sorted(arrays)])
