"""Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, https://arxiv.org/abs/1703.02757:

    score(i) = sum of ||Delta_i - Delta_j||^2 over the n - f - 2 nearest j != i
    server:   w^{t+1} = w^t + eta_s Delta_{argmin score}           n >= 2f + 3, unweighted

One site's update is all that is used: with unlike sites Krum is worse than a mean where nobody attacks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Summary
from fedfm.strategies.reducers import multi_krum
from fedfm.strategies.robust import ByDistance


@dataclass(frozen=True)
class Krum(ByDistance):
    """The update that lies nearest to the others. `byzantine`: f, how many bad ones are to be borne."""

    summary: ClassVar[Summary] = Summary("robust", "Blanchard 2017, arXiv:1703.02757", "all sites", "none", "1x")

    def reduce_with(self, rows: np.ndarray, byzantine: int) -> np.ndarray:
        return multi_krum(rows, byzantine, 1)
