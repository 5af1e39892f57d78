"""SCAFFOLD.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", ICML
2020, https://arxiv.org/abs/1910.06378:

    site k:   y <- y - eta (g_k(y) - c_k + c),   tau_k steps from x
              c_k' = c_k - c + (x - y) / (tau_k eta)                         (option II)
    server:   x <- x + eta_s sum_k p_k (y_k - x),    c <- c + sum_k q_k (c_k' - c_k)

With plain SGD option II is the mean of the gradients that the site saw, because sum_t (g_t - c_k + c) = (x - y) / eta.
That mean is what is kept here: it stays in units of a gradient under momentum, AdamW, clipping or a schedule, where
(x - y) / (tau eta) would not.

p_k are the shares of the two-level mean among the sites of the round; q_k are the same shares among all registered
sites, so that c = sum_k p_k c_k once every site has taken part. The paper's uniform 1/N beside weighted x would lead to
the optimum of the *uniform* mean: both must be weighted alike.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, SiteRows, State, Strategy, Summary, Update, registered_shares, two_level_mean


@dataclass(frozen=True)
class Scaffold(Strategy):
    """Control variates against client drift; fragile where few of many sites take part in a round."""

    summary: ClassVar[Summary] = Summary("global", "Karimireddy 2020, arXiv:1910.06378", "all sites", "both", "1x")
    each: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = ("control", "_sum")
    sends: ClassVar[tuple[str, ...]] = ("control",)
    returns: ClassVar[tuple[str, ...]] = ("control",)

    def start(self, weights: Arrays) -> State:
        return {"control": {name: np.zeros_like(value) for name, value in weights.items()}}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        control = state["control"]
        shares = registered_shares(round)
        for update in updates:
            for name, change in update.extra.get("control", {}).items():
                control = add_scaled(control, {name: change}, shares(update, name))
        mean = two_level_mean(updates, round.domain_weights)
        return add_scaled(weights, mean, self.server_learning_rate), {"control": control}

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        rows.kept["_sum"].add_(grad)
        return grad - rows.kept["control"] + rows.sent["control"]

    def finish(self, theta: Any, rows: SiteRows) -> dict[str, Any]:
        mean = rows.kept["_sum"] / rows.steps.clamp(min=1)
        change = mean - rows.kept["control"]
        rows.kept["control"] = mean
        return {"delta": theta - rows.received, "control": change}
