"""FedDyn.

Acar, Zhao, Matas Navarro, Mattina, Whatmough, Saligrama, "Federated Learning Based on Dynamic Regularization", ICLR
2021, https://arxiv.org/abs/2111.04263:

    site k:   min_w F_k(w) - <g_k, w> + (a / 2) ||w - x||^2,        g_k <- g_k - a (w_k - x)
    server:   h <- h - a (1 / K) sum_{k in round} (w_k - x),        x <- mean_{k in round} w_k - h / a

K counts all registered sites; means are uniform, as in the paper, inside a domain, and between domains by `w_d`: a
weighted mean would need weighted g_k. The fixed point is the optimum of that mean, for any number of local steps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import (
    Round,
    SiteRows,
    State,
    Strategy,
    Summary,
    Update,
    key,
    registered_shares,
    two_level_mean,
)


@dataclass(frozen=True)
class FedDyn(Strategy):
    """A linear term at each site that makes the sites' optima agree. `alpha`: a, 0.001 to 0.1 in the paper."""

    summary: ClassVar[Summary] = Summary("global", "Acar 2021, arXiv:2111.04263", "all sites", "both", "1x")
    each: ClassVar[bool] = True
    averages: ClassVar[bool] = False  # h moves the result beyond the mean
    keeps: ClassVar[tuple[str, ...]] = ("linear",)
    alpha: float = key(0.01, low=1e-6)

    def start(self, weights: Arrays) -> State:
        return {"h": {name: np.zeros(value.shape) for name, value in weights.items()}}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = [replace(update, num_examples=1) for update in updates]
        h = state["h"]
        shares = registered_shares(replace(round, examples=dict.fromkeys(round.sites, 1)))
        for update in updates:
            for name, change in update.delta.items():
                h = add_scaled(h, {name: change}, -self.alpha * shares(update, name))
        mean = two_level_mean(updates, round.domain_weights)
        step = {name: change - h[name] / self.alpha for name, change in mean.items()}
        return add_scaled(weights, step, self.server_learning_rate), {"h": h}

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        return grad - rows.kept["linear"] + self.alpha * (theta - received)

    def finish(self, theta: Any, rows: SiteRows) -> dict[str, Any]:
        change = theta - rows.received
        rows.kept["linear"] = rows.kept["linear"] - self.alpha * change
        return {"delta": change}
