"""PCGrad between domains.

Yu, Kumar, Gupta, Levine, Hausman, Finn, "Gradient Surgery for Multi-Task Learning", NeurIPS 2020,
https://arxiv.org/abs/2001.06782, on the domains' mean changes g_d:

    for d, and every e != d in random order:   if <g_d', g_e> < 0:   g_d' <- g_d' - <g_d', g_e> / ||g_e||^2 g_e
    server:   w^{t+1} = w^t + eta_s mean_d g_d'

It rebalances a conflict and cannot remove one: it stops at the first point where no common step is left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Round, Summary
from fedfm.strategies.conflicts import BetweenDomains, scaled


@dataclass(frozen=True)
class PCGrad(BetweenDomains):
    """Each domain's change without what goes against another's."""

    summary: ClassVar[Summary] = Summary("domains", "Yu 2020, arXiv:2001.06782", "all sites", "none", "1x")

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        draw = np.random.default_rng([round.seed, round.number, *b"pcgrad"])
        own, size = scaled(rows)
        turned = own.copy()
        for d in range(len(own)):
            for e in draw.permutation(len(own)):
                against, square = turned[d] @ own[e], own[e] @ own[e]
                if e != d and against < 0 and square > 0:
                    turned[d] -= against / square * own[e]
        return size * turned.mean(axis=0)
