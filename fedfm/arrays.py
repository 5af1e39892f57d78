"""Named arrays and the few operations that federated rules are made of.

`Arrays` is what travels and what a strategy sees. A name is `<group>/<tensor>`: `shared/...` is averaged over all
sites, `<domain>/...` over the sites of that domain, `private/...` stays at its site. Nothing here knows torch or flwr.
"""

from __future__ import annotations

import hashlib
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
    counts = {name: int(a.size - np.isfinite(a).sum()) for name, a in arrays.items()}
    return {name: count for name, count in counts.items() if count}


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

    A sum of products is kept, never the contributions: memory stays at one set of tensors however many sites there
    are. Sums are float64, so that the order of equal contributions matters only below 1e-15.
    """

    def __init__(self) -> None:
        self._sums: Arrays = {}
        self._weights: dict[str, float] = {}

    def add(self, arrays: Mapping[str, np.ndarray], weight: float) -> None:
        for name, array in arrays.items():
            if name not in self._sums:
                self._sums[name] = np.zeros(array.shape, np.float64)
                self._weights[name] = 0.0
            self._sums[name] += np.multiply(array, weight, dtype=np.float64)
            self._weights[name] += weight

    def value(self) -> Arrays:
        """The means, in float64; a tensor whose weights sum to zero is left out."""
        return {name: total / self._weights[name] for name, total in self._sums.items() if self._weights[name] > 0}
