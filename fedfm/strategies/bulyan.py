"""Bulyan.

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018,
https://arxiv.org/abs/1802.07927:

    S: theta = n - 2f updates, chosen one after the other by Krum among those that are left
    server:   w^{t+1}_j = w^t_j + eta_s mean of the theta - 2f values of S nearest to their median,   n >= 4f + 3

flwr 1.41 takes the theta best of one pass of Multi-Krum: `form = "flower"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.strategies.base import Summary, key
from fedfm.strategies.reducers import bulyan
from fedfm.strategies.robust import ByDistance


@dataclass(frozen=True)
class Bulyan(ByDistance):
    """Krum to choose, then a trimmed mean, against attacks that hide in one coordinate. `byzantine`: f."""

    summary: ClassVar[Summary] = Summary("robust", "El Mhamdi 2018, arXiv:1802.07927", "all sites", "none", "1x")
    needs: ClassVar[int] = 4
    form: str = key("paper", choices=("paper", "flower"))

    def reduce_with(self, rows: np.ndarray, byzantine: int) -> np.ndarray:
        return bulyan(rows, byzantine, at_once=self.form == "flower")
