"""AFL.

Mohri, Sivek, Suresh, "Agnostic Federated Learning", ICML 2019, https://arxiv.org/abs/1902.00146:

    min_w max_{lambda in simplex} sum_d lambda_d F_d(w)
    server:   w <- w + eta_s sum_d lambda_d Delta_d,     lambda <- projection(lambda + gamma F(w^t))

`over` = "domains": the mixture is of domains (their sites' mean loss), and moves what they share. "sites": of sites,
inside every group of tensors. Losses of unlike tasks have unlike scales: each is divided by the first one seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, RunningMean, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, domain_means, key, mean_of_domains


@dataclass(frozen=True)
class AFL(Strategy):
    """The worst mixture of the sites' losses is minimised. `ascent_rate`: gamma; `over`: of what it is a mixture."""

    summary: ClassVar[Summary] = Summary("global", "Mohri 2019, arXiv:1902.00146", "all sites", "server", "1.3x")
    each: ClassVar[bool] = True
    starts_with_loss: ClassVar[bool] = True
    ascent_rate: float = key(0.1)
    over: str = key("domains", choices=("domains", "sites"))

    def start(self, weights: Arrays) -> State:
        return {"mixture": {}, "first": {}}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        losses = self._losses(updates)
        first = {name: state["first"].get(name, max(loss, 1e-10)) for name, loss in losses.items()} | state["first"]
        known = sorted(set(round.sites.values() if self.over == "domains" else round.sites) | losses.keys())
        mixture = {name: state["mixture"].get(name, 1 / len(known)) for name in known}
        means = domain_means(updates)
        mixed = mean_of_domains(means, mixture) if self.over == "domains" else _weighted(updates, mixture)
        mean = mean_of_domains(means, {}) | mixed  # what only those of weight 0 have is theirs to train
        slopes = {name: loss / first[name] for name, loss in losses.items()}
        risen = [mixture[name] + self.ascent_rate * slopes.get(name, 0.0) for name in known]
        projected = to_simplex(np.array(risen))
        new = {"mixture": dict(zip(known, projected.tolist(), strict=True)), "first": first}
        return add_scaled(weights, mean, self.server_learning_rate), new

    def _losses(self, updates: Iterable[Update]) -> dict[str, float]:
        """Mean loss at w^t by domain or by site."""
        sums: dict[str, tuple[float, int]] = {}
        for update in updates:
            name = update.domain if self.over == "domains" else update.site
            loss, count = sums.get(name, (0.0, 0))
            sums[name] = loss + update.num_examples * update.metrics["start-loss"], count + update.num_examples
        return {name: loss / count for name, (loss, count) in sums.items()}


def _weighted(updates: Iterable[Update], mixture: Mapping[str, float]) -> Arrays:
    mean = RunningMean()
    for update in updates:
        mean.add(update.delta, mixture[update.site])
    return mean.value()


def to_simplex(values: np.ndarray) -> np.ndarray:
    """The nearest point of {x >= 0, sum x = 1} to `values [n]` (Duchi et al. 2008)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    last = np.flatnonzero(falling > excess)[-1]
    return np.maximum(values - excess[last], 0)
