"""Norm bound.

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, https://arxiv.org/abs/1911.07963:

    server:   w^{t+1} = w^t + eta_s mean_k Delta_k min(1, M / ||Delta_k||)        two-level mean; norm over all tensors

Against updates that are too large; one that is of ordinary size and points the wrong way passes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled, norm
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, two_level_mean


@dataclass(frozen=True)
class NormBound(Strategy):
    """FedAvg of updates cut to a norm. `bound`: M; 0 takes the median of those norms of the round that are not zero."""

    summary: ClassVar[Summary] = Summary("robust", "Sun 2019, arXiv:1911.07963", "all sites", "none", "1x")
    each: ClassVar[bool] = True
    bound: float = key(0.0)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        norms = [norm(update.delta) for update in updates]
        moved = [size for size in norms if size > 0]  # sites that have not moved say nothing of what is usual
        bound = self.bound or (float(np.median(moved)) if moved else 0.0)
        cut = [_scaled(u, bound / size) if size > bound else u for u, size in zip(updates, norms, strict=True)]
        return add_scaled(weights, two_level_mean(cut, round.domain_weights), self.server_learning_rate), state


def _scaled(update: Update, factor: float) -> Update:
    return replace(update, delta={name: factor * value.astype(np.float64) for name, value in update.delta.items()})
