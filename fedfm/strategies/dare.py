"""DARE.

Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
ICML 2024, https://arxiv.org/abs/2311.03099, the domains' mean changes being the task vectors:

    drop and rescale:   tau_d' = m_d * tau_d / (1 - p),     m_d ~ Bernoulli(1 - p) for each coordinate
    merge:              w^{t+1} = w^t + eta_s lambda sum_d tau_d'
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import WholeVector


@dataclass(frozen=True)
class Dare(WholeVector):
    """Task arithmetic of thinned vectors, which meet less often. `drop`: p; `scale`: lambda."""

    summary: ClassVar[Summary] = Summary("domains", "Yu 2024, arXiv:2311.03099", "all sites", "none", "1x")
    averages: ClassVar[bool] = False  # it draws
    drop: float = key(0.5, high=0.99)
    scale: float = key(0.5)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        draw = np.random.default_rng([round.seed, round.number, *b"dare"])
        kept = draw.random(rows.shape) >= self.drop
        return self.scale * (rows * kept / (1 - self.drop)).sum(axis=0)
