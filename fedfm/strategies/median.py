"""Coordinate-wise median.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018,
https://arxiv.org/abs/1803.01498:

    server:   w^{t+1}_j = w^t_j + eta_s median_k Delta_{k,j}        for every coordinate j, unweighted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Summary
from fedfm.strategies.reducers import median
from fedfm.strategies.robust import Robust


@dataclass(frozen=True)
class Median(Robust):
    """Bears bad updates from less than half of the sites; with unlike sites it drops what only few of them say."""

    summary: ClassVar[Summary] = Summary("robust", "Yin 2018, arXiv:1803.01498", "all sites", "none", "1x")

    def reduce(self, rows: np.ndarray) -> np.ndarray:
        return median(rows)
