"""TIES.

Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging: Resolving Interference When Merging Models", NeurIPS 2023,
https://arxiv.org/abs/2306.01708, the domains' mean changes being the task vectors:

    trim:     of each tau_d the share `keep` of largest magnitude, the rest 0
    elect:    the sign of sum_d tau_d, coordinate by coordinate
    merge:    w^{t+1} = w^t + eta_s lambda mean of the tau_d that have that sign (where none has, 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import WholeVector


@dataclass(frozen=True)
class Ties(WholeVector):
    """Task vectors without small values, merged where they agree. `keep`: the share that stays; `scale`: lambda."""

    summary: ClassVar[Summary] = Summary("domains", "Yadav 2023, arXiv:2306.01708", "all sites", "none", "1x")
    averages: ClassVar[bool] = False  # it trims
    keep: float = key(0.2, low=1e-6, high=1.0)
    scale: float = key(1.0)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        trimmed = np.stack([trim(row, self.keep) for row in rows])
        sign = np.sign(trimmed.sum(axis=0))
        agree = (np.sign(trimmed) == sign) & (sign != 0)
        return self.scale * (trimmed * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)


def trim(row: np.ndarray, keep: float) -> np.ndarray:
    """`row [P]` with all but the ceil(keep P) values of largest magnitude set to 0."""
    count = int(np.ceil(keep * len(row)))
    small = np.argsort(-np.abs(row), kind="stable")[count:]
    kept = row.copy()
    kept[small] = 0
    return kept
