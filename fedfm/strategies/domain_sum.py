"""Sum of the domains' changes.

fedfm's own rule. A mean over D unlike domains gives each a D-th of the step that it would make alone; their sum gives
each the whole, and lets those that agree go further:

    server:   w^{t+1} = w^t + eta_s min(1, trust * mean_d ||g_d|| / ||sum_d g_d||) sum_d g_d        shared tensors

What belongs to a domain is averaged over its sites only, so that its steps are as in FedAvg, other than with a server
learning rate of D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import BetweenDomains


@dataclass(frozen=True)
class DomainSum(BetweenDomains):
    """Every domain's whole step. `trust`: the sum's norm is at most that many mean norms of a domain; 0: no limit."""

    summary: ClassVar[Summary] = Summary("domains", "fedfm (see its file)", "all sites", "none", "1x")
    averages: ClassVar[bool] = False  # of equal changes of two domains it makes twice that change
    trust: float = key(0.0)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        total = rows.sum(axis=0)
        limit = self.trust * float(np.linalg.norm(rows, axis=1).mean())
        size = float(np.linalg.norm(total))
        return total * (limit / size) if self.trust and size > limit else total
