"""Named arrays and the few operations that federated rules are made of.

`Arrays` is what travels and what a strategy sees. A name is `<group>/<tensor>`: `shared/...` is averaged over all
sites, `<domain>/...` over the sites of that domain, `private/...` stays at its site. Nothing here knows torch or flwr.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

Arrays = dict[str, np.ndarray]
VECTOR = 2**18  # values up to which tensors are added as one vector


def add_scaled(arrays: Arrays, step: Mapping[str, np.ndarray], scale: float = 1.0) -> Arrays:
    """`arrays + scale * step` on the tensors that `step` names; computed in float64, dtypes kept."""
    moved = dict(arrays)
    for name, change in step.items():
        wide = arrays[name].astype(np.float64) + scale * np.asarray(change, np.float64)
        moved[name] = wide.astype(arrays[name].dtype)
    return moved


def norm(arrays: Mapping[str, np.ndarray]) -> float:
    """Euclidean norm over all tensors together."""
    return float(np.sqrt(sum(float(np.sum(np.square(a, dtype=np.float64))) for a in arrays.values())))


def non_finite(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many values are NaN or infinite, for each tensor that has any."""
    parts = [array.reshape(-1) for array in arrays.values()]
    if parts and sum(part.size for part in parts) <= VECTOR:  # one such value makes the sum so; few others do
        with np.errstate(over="ignore", invalid="ignore"):
            if math.isfinite(np.concatenate(parts).sum()):
                return {}
    is_finite = ((name, np.isfinite(array)) for name, array in arrays.items())
    return {name: int(places.size - places.sum()) for name, places in is_finite if not places.all()}


def num_bytes(arrays: Mapping[str, np.ndarray]) -> int:
    """Bytes of the values alone."""
    return sum(a.nbytes for a in arrays.values())


def sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Digest over names, dtypes, shapes and values, whatever the order of the dictionary."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(_heading(name, array.dtype, array.shape))
        digest.update(array.reshape(-1))
    return digest.hexdigest()


@lru_cache(maxsize=4096)
def _heading(name: str, dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    return f"{name}|{dtype.str}|{shape}|".encode()


def group_of(name: str) -> str:
    """`'medical'` for `'medical/head.weight'`."""
    return name.partition("/")[0]


class RunningMean:
    """Weighted mean of each tensor over those who sent it, one contribution at a time.

    A sum of products is kept, never the contributions: memory stays at one set of tensors however many sites there
    are. Sums are float64, so that the order of equal contributions matters only below 1e-15. Small contributions are
    added as one vector: a thousand sites with thirty tensors would be thirty thousand small sums.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], tuple[np.ndarray, float]] = {}  # names, side by side -> their sum, its weight
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._product = np.empty(0)  # kept: to ask the system for fresh memory each time costs more than the sum

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        """Raises ValueError where a tensor has another shape than before."""
        for name, array in arrays.items():
            if self._shapes.setdefault(name, array.shape) != array.shape:
                raise ValueError(f"{name} has shape {array.shape}, and before had {self._shapes[name]}")
        if sum(array.size for array in arrays.values()) <= VECTOR:
            self._add(tuple(arrays), [array.reshape(-1) for array in arrays.values()], weight)
            return
        for name, array in arrays.items():
            self._add((name,), [array.reshape(-1)], weight)

    def _add(self, names: tuple[str, ...], parts: list[np.ndarray], weight: float) -> None:
        size = sum(part.size for part in parts)
        total, before = self._sums[names] if names in self._sums else (np.zeros(size), 0.0)
        if size > self._product.size:
            self._product = np.empty(size)
        if parts:
            product = np.concatenate(parts, out=self._product[:size])
            product *= weight
            total += product
        self._sums[names] = total, before + weight

    def value(self) -> Arrays:
        """The means, in float64; a tensor whose weights sum to zero is left out."""
        sums: Arrays = {}
        weights: dict[str, float] = {}
        for names, (total, weight) in self._sums.items():
            ends = np.cumsum([math.prod(self._shapes[name]) for name in names])
            for name, part in zip(names, np.split(total, ends[:-1]), strict=True) if names else ():
                part = part.reshape(self._shapes[name])
                sums[name] = sums[name] + part if name in sums else part
                weights[name] = weights.get(name, 0.0) + weight
        return {name: total / weights[name] for name, total in sums.items() if weights[name] > 0}
