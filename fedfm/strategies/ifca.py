"""IFCA.

Ghosh, Chung, Yin, Ramchandran, "An Efficient Framework for Clustered Federated Learning", NeurIPS 2020,
https://arxiv.org/abs/2006.04088:

    server:   sends w_1 .. w_c to every site of the round
    site k:   j = argmin_j F_k(w_j);   local steps from w_j
    server:   w_j <- w_j + eta_s mean_{k with choice j} Delta_k

A site that has not taken part yet uses the first model. Models must begin apart, or all sites choose the first: all but
the first begin with Gaussian noise of deviation `spread` added. The global model, which a new site would get, is their
mean by the examples of the sites that chose them, of every tensor over the sites that have it. It costs the bytes of c
models down, and a forward pass of each over the training data in every round. What is private is tried with each.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, mean_of_models, two_level_mean


@dataclass(frozen=True)
class IFCA(Strategy):
    """Sites choose among several models by their loss. `clusters`: how many; `spread`: how far apart they begin."""

    summary: ClassVar[Summary] = Summary("domains", "Ghosh 2020, arXiv:2006.04088", "clusters", "server", "1.5x")
    each: ClassVar[bool] = True
    groups_sites: ClassVar[bool] = True
    clusters: int = key(2, low=1, high=16)
    spread: float = key(0.02)

    @property
    def candidates(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(f"cluster-{number}" for number in range(self.clusters))

    @property
    def sends(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.candidates

    def start(self, weights: Arrays) -> State:
        models = {cluster: self._apart(weights, number) for number, cluster in enumerate(self.candidates)}
        return models | {"chosen": {}}

    def _apart(self, weights: Arrays, number: int) -> Arrays:
        if number == 0:
            return dict(weights)
        drawn = {}
        for name, value in weights.items():
            draw = np.random.default_rng([number, *f"ifca/{name}".encode()])
            drawn[name] = self.spread * draw.standard_normal(value.shape)
        return add_scaled(weights, drawn)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        by_choice: dict[str, list[Update]] = {}
        for update in updates:
            by_choice.setdefault(self.candidates[int(update.metrics.get("choice", 0))], []).append(update)
        new = dict(state)
        for cluster, own in by_choice.items():
            mean = two_level_mean(own, round.domain_weights)
            new[cluster] = add_scaled(state[cluster], mean, self.server_learning_rate)
        new["chosen"] = state["chosen"] | {u.site: cluster for cluster, own in by_choice.items() for u in own}
        own_models = ((site, new[cluster]) for site, cluster in sorted(new["chosen"].items()))
        return mean_of_models(own_models, round, weights), new

    def variants(self, weights: Arrays, state: State) -> dict[str, Arrays]:
        return {cluster: state[cluster] for cluster in self.candidates if cluster in state}

    def variant_of(self, state: State, site: str) -> str:
        return state["chosen"].get(site, self.candidates[0]) if "chosen" in state else ""
