"""Robust means of the rows of `[n, P]`, a row an update; unweighted, because sites tell their numbers of examples.

Rules that compare whole updates do so for each group of tensors apart: a site is judged on the shared tensors beside
all sites, on its domain's beside those of its domain. Every row is float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from fedfm.arrays import Arrays, group_of
from fedfm.strategies.base import Update

Reducer = Callable[[np.ndarray], np.ndarray]


def median(rows: np.ndarray) -> np.ndarray:
    """Coordinate-wise median (Yin et al. 2018)."""
    return np.median(rows, axis=0)


def trimmed_mean(rows: np.ndarray, trim: float) -> np.ndarray:
    """Coordinate-wise mean without the floor(trim n) smallest and largest values."""
    cut = int(trim * len(rows))
    return np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0)


def squared_distances(rows: np.ndarray) -> np.ndarray:
    """`[n, n]`, from differences: |a|^2 + |b|^2 - 2ab loses the digits that equal updates differ in."""
    return np.stack([np.square(rows - row).sum(axis=1) for row in rows])


def krum_scores(distances: np.ndarray, byzantine: int) -> np.ndarray:
    """Of each row the sum of its squared distances to its n - f - 2 nearest others, at least one."""
    nearest = max(len(distances) - byzantine - 2, 1)
    others = distances + np.diag(np.full(len(distances), np.inf))
    return np.sort(others, axis=1)[:, :nearest].sum(axis=1)


def multi_krum(rows: np.ndarray, byzantine: int, keep: int) -> np.ndarray:
    """Mean of the `keep` rows with the smallest scores; Krum is keep = 1."""
    if len(rows) == 1:
        return rows[0]
    best = np.argsort(krum_scores(squared_distances(rows), byzantine), kind="stable")[:keep]
    return rows[np.sort(best)].mean(axis=0)


def bulyan(rows: np.ndarray, byzantine: int, at_once: bool = False) -> np.ndarray:
    """theta = n - 2f rows by Krum, then of each coordinate the mean of the theta - 2f values nearest to the median.

    Krum is repeated among those that are left, or asked `at_once` for the theta best.
    """
    left, chosen = list(range(len(rows))), []
    distances, theta = squared_distances(rows), max(len(rows) - 2 * byzantine, 1)
    if at_once:
        chosen = np.argsort(krum_scores(distances, byzantine), kind="stable")[:theta].tolist()
    while len(chosen) < theta:
        scores = krum_scores(distances[np.ix_(left, left)], byzantine) if len(left) > 1 else np.zeros(1)
        chosen.append(left.pop(int(scores.argmin())))
    selected = rows[chosen]
    keep = max(len(selected) - 2 * byzantine, 1)
    gaps = np.abs(selected - np.median(selected, axis=0))
    nearest = np.argsort(gaps, axis=0, kind="stable")[:keep]
    return np.take_along_axis(selected, nearest, axis=0).mean(axis=0)


def by_group(updates: Sequence[Update], reduce: Reducer) -> Arrays:
    """`reduce` over those who sent the tensors; those of a group that the same sites sent lie side by side."""
    reduced: Arrays = {}
    for names, senders in _groups(updates):
        rows = np.stack([np.concatenate([u.delta[n].ravel().astype(np.float64) for n in names]) for u in senders])
        flat, first = reduce(rows), 0
        for name in names:
            shape = senders[0].delta[name].shape
            count = int(np.prod(shape))
            reduced[name] = flat[first : first + count].reshape(shape)
            first += count
    return reduced


def _groups(updates: Iterable[Update]) -> list[tuple[list[str], list[Update]]]:
    """Tensors of one group that the same updates hold, and those updates.

    A group may have several: with body.tuning = "full" only sites with texts train the embeddings of the shared body.
    Each tensor stands in one of them, beside all who sent it.
    """
    updates = list(updates)
    senders: dict[str, list[int]] = {}
    for place, update in enumerate(updates):
        for name in update.delta:
            senders.setdefault(name, []).append(place)
    found: dict[tuple[str, tuple[int, ...]], list[str]] = {}
    for name in sorted(senders):
        found.setdefault((group_of(name), tuple(senders[name])), []).append(name)
    return [(names, [updates[place] for place in places]) for (_, places), names in found.items()]
