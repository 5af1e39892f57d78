"""What each site contributes to a federation: leave-one-out differences, and Shapley values.

    left out:   v(N) - v(N without i)
    Shapley:    phi_i = sum_{S without i} |S|! (n - |S| - 1)! / n! * (v(S + i) - v(S)),      sum_i phi_i = v(N) - v({})

Shapley, "A Value for n-Person Games", 1953, https://doi.org/10.1515/9781400881970-018. v(S) is the score of the model
that the sites of S have trained; v({}) that of the untrained one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from math import factorial
from pathlib import Path

MOST_SITES = 6  # 64 runs
Coalition = frozenset[str]


def contributions_folder(runs: Path, config_sha256: str) -> Path:
    """Where the contributions of a configuration's sites lie, below the folder of its runs."""
    return runs / f"contributions-{config_sha256[:8]}"


def coalitions(sites: Iterable[str], shapley: bool) -> list[Coalition]:
    """Those that have to be trained: all but the empty one, or all sites and all but one."""
    names = sorted(sites)
    sizes = range(1, len(names) + 1) if shapley else (len(names) - 1, len(names))
    return [frozenset(chosen) for size in sizes for chosen in combinations(names, size) if chosen]


def shapley_values(values: Mapping[Coalition, float]) -> dict[str, float]:
    """Site -> its Shapley value. values: every coalition -> v, the empty one too. Raises KeyError where one lacks."""
    sites = max(values, key=len)
    n = len(sites)
    found = {}
    for site in sorted(sites):
        others = sorted(sites - {site})
        found[site] = sum(
            factorial(size) * factorial(n - size - 1) / factorial(n) * (values[rest | {site}] - values[rest])
            for size in range(n)
            for rest in map(frozenset, combinations(others, size))
        )
    return found


def left_out_values(values: Mapping[Coalition, float]) -> dict[str, float]:
    """Site -> what the score of all loses without it."""
    everyone = max(values, key=len)
    return {site: values[everyone] - values[everyone - {site}] for site in sorted(everyone)}
