"""Task arithmetic.

Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi, "Editing Models with Task Arithmetic", ICLR 2023,
https://arxiv.org/abs/2212.04089, the domains' mean changes being the task vectors:

    server:   w^{t+1} = w^t + eta_s lambda sum_d tau_d

Meant for one round with many local steps (rounds = 1), and works in each.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import WholeVector


@dataclass(frozen=True)
class TaskArithmetic(WholeVector):
    """Task vectors are added. `scale`: lambda; 1 / number of domains would be the mean."""

    summary: ClassVar[Summary] = Summary("domains", "Ilharco 2023, arXiv:2212.04089", "all sites", "none", "1x")
    averages: ClassVar[bool] = False  # of equal changes of two domains it makes twice that change
    scale: float = key(0.5)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        return self.scale * rows.sum(axis=0)
