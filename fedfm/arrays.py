"""Named arrays and the few operations that federated rules are made of.

`Arrays` is what travels and what a strategy sees. A name is `<group>/<tensor>`: `shared/...` is averaged over all
sites, `<domain>/...` over the sites of that domain, `private/...` stays at its site. Nothing here knows torch or flwr.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np

Arrays = dict[str, np.ndarray]


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
        digest.update(f"{name}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.reshape(-1))
    return digest.hexdigest()


def group_of(name: str) -> str:
    """`'medical'` for `'medical/head.weight'`."""
    return name.partition("/")[0]


class RunningMean:
    """Weighted mean of each tensor over those who sent it, one contribution at a time.

    A sum of products is kept, never the contributions: memory stays at two sets of tensors however many sites there
    are. Sums are float64, so that the order of equal contributions matters only below 1e-15. Contributions of the same
    tensors are added as one vector: a thousand sites with thirty tensors would be thirty thousand small sums.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[tuple[str, tuple[int, ...]], ...], _Sum] = {}  # by names and shapes

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        layout = tuple((name, array.shape) for name, array in arrays.items())
        if layout not in self._sums:
            self._sums[layout] = _Sum(sum(array.size for array in arrays.values()))
        self._sums[layout].add([array.reshape(-1) for array in arrays.values()], weight)

    def value(self) -> Arrays:
        """The means, in float64; a tensor whose weights sum to zero is left out."""
        sums: Arrays = {}
        weights: dict[str, float] = {}
        for layout, own in self._sums.items():
            first = 0
            for name, shape in layout:
                last = first + math.prod(shape)
                part = own.total[first:last].reshape(shape)
                sums[name] = sums[name] + part if name in sums else part
                weights[name] = weights.get(name, 0.0) + own.weight
                first = last
        return {name: total / weights[name] for name, total in sums.items() if weights[name] > 0}


class _Sum:
    """`sum_k w_k x_k` and `sum_k w_k` of vectors of `size` values."""

    def __init__(self, size: int):
        self.total, self.weight = np.zeros(size), 0.0
        self._product = np.empty(size)  # kept: to ask the system for fresh memory each time costs more than the sum

    def add(self, parts: list[np.ndarray], weight: float) -> None:
        if parts:
            np.concatenate(parts, out=self._product)
            self._product *= weight
            self.total += self._product
        self.weight += weight
