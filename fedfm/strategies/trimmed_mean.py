"""Coordinate-wise trimmed mean.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
https://arxiv.org/abs/1803.01498:

    server:   w^{t+1}_j = w^t_j + eta_s mean of Delta_{k,j} without the floor(b n) smallest and largest, unweighted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Summary, key
from fedfm.strategies.reducers import trimmed_mean
from fedfm.strategies.robust import Robust


@dataclass(frozen=True)
class TrimmedMean(Robust):
    """Bears bad updates from a share `trim` = b of the sites; where b n < 1 nothing is cut, and nothing is borne."""

    summary: ClassVar[Summary] = Summary("robust", "Yin 2018, arXiv:1803.01498", "all sites", "none", "1x")
    trim: float = key(0.2, high=0.499999)

    def reduce(self, rows: np.ndarray) -> np.ndarray:
        return trimmed_mean(rows, self.trim)
