"""q-FedAvg.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
https://arxiv.org/abs/1905.10497:

    site k:   F_k = its loss at w^t;   Delta_k = L (w^t - w_k)
    server:   D_k = F_k^q Delta_k,     h_k = q F_k^{q-1} ||Delta_k||^2 + L F_k^q
              w^{t+1} = w^t - sum_k D_k / sum_k h_k

q = 0 is the *uniform* mean of the sites' changes: weights by examples would count sites twice. L is one over the local
learning rate; h grows with q, so that a larger q steps less far in a round. Norms are of all tensors of a group, and
each group has its own sums: a domain's head is the concern of its own sites.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled, group_of, norm
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key


@dataclass(frozen=True)
class QFedAvg(Strategy):
    """Sites with larger losses count more. `q`: how much; `lipschitz`: L."""

    summary: ClassVar[Summary] = Summary("global", "Li 2020, arXiv:1905.10497", "all sites", "none", "1.3x")
    each: ClassVar[bool] = True
    averages: ClassVar[bool] = False  # h holds the norm of the change
    starts_with_loss: ClassVar[bool] = True
    q: float = key(0.2)
    lipschitz: float = key(1.0, low=1e-9)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        sums: Arrays = {}
        totals: dict[str, float] = {}  # of h, by tensor: not every domain has every tensor
        for update in updates:
            loss = max(float(update.metrics["start-loss"]), 1e-10)
            wide = {name: self.lipschitz * value.astype(np.float64) for name, value in update.delta.items()}
            for group in {group_of(name) for name in wide}:
                own = {name: value for name, value in wide.items() if group_of(name) == group}
                h = self.q * loss ** (self.q - 1) * norm(own) ** 2 + self.lipschitz * loss**self.q
                for name, value in own.items():
                    totals[name] = totals.get(name, 0.0) + h
                    sums[name] = sums.get(name, 0.0) + loss**self.q * value
        step = {name: value / totals[name] for name, value in sums.items()}
        return add_scaled(weights, step, self.server_learning_rate), state
