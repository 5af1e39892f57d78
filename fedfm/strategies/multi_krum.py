"""Multi-Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017, https://arxiv.org/abs/1703.02757:

    server:   w^{t+1} = w^t + eta_s mean of the m updates with the smallest scores of Krum,   n >= 2f + 3, unweighted
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Summary, key
from fedfm.strategies.reducers import multi_krum
from fedfm.strategies.robust import ByDistance


@dataclass(frozen=True)
class MultiKrum(ByDistance):
    """Between Krum and the mean. `byzantine`: f; `keep`: m, 0 for n - f."""

    summary: ClassVar[Summary] = Summary("robust", "Blanchard 2017, arXiv:1703.02757", "all sites", "none", "1x")
    keep: int = key(0)

    def reduce_with(self, rows: np.ndarray, byzantine: int) -> np.ndarray:
        return multi_krum(rows, byzantine, self.keep or len(rows) - byzantine)
