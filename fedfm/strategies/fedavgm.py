"""FedAvgM.

Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
https://arxiv.org/abs/1909.06335:

    server:   v <- beta v + mean_k Delta_k,     w^{t+1} = w^t + eta_s v
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, two_level_mean


@dataclass(frozen=True)
class FedAvgM(Strategy):
    """Momentum at the server. `server_momentum`: beta; the steps grow up to eta_s / (1 - beta) times the mean."""

    summary: ClassVar[Summary] = Summary("global", "Hsu 2019, arXiv:1909.06335", "all sites", "server", "1x")
    server_momentum: float = key(0.9, high=0.999999)

    def start(self, weights: Arrays) -> State:
        return {"velocity": {name: np.zeros(value.shape) for name, value in weights.items()}}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        velocity = dict(state["velocity"])
        step = {}
        for name, change in two_level_mean(updates, round.domain_weights).items():
            velocity[name] = step[name] = self.server_momentum * velocity[name] + change
        return add_scaled(weights, step, self.server_learning_rate), {"velocity": velocity}
