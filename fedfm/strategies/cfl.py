"""Clustered federated learning.

Sattler, Müller, Samek, "Clustered Federated Learning: Model-Agnostic Distributed Multi-Task Optimization under Privacy
Constraints", 2019, https://arxiv.org/abs/1910.01991:

    each cluster:  FedAvg among its sites, until it is at rest though its sites are not:
                   ||mean_k Delta_k|| < eps_1  and  max_k ||Delta_k|| > eps_2
    then:          the bipartition that makes the largest cosine between updates of different parts smallest

That bipartition is the last merge of single-linkage clustering by 1 - cosine, as in the paper's Algorithm 1. Cosines
and norms are of the `shared` tensors that all sites of a cluster have. The paper has absolute thresholds; here they are
ratios, because the scale of an update depends on body, tuning and learning rate: eps_1 = `rest` * max_k ||Delta_k|| of
the cluster in this round, and eps_2 = `apart` * the largest ||Delta_k|| of the first round.

The global model, which a new site would get, is the clusters' mean by examples, of every tensor over the sites that
have it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, mean_of_models, two_level_mean


@dataclass(frozen=True)
class CFL(Strategy):
    """Clusters that split where their sites pull apart.

    `rest`, `apart`: the ratios above. `after`: the first round that may end in a split. `smallest`: sites of a part.
    """

    summary: ClassVar[Summary] = Summary("domains", "Sattler 2019, arXiv:1910.01991", "clusters", "server", "1x")
    each: ClassVar[bool] = True
    groups_sites: ClassVar[bool] = True
    rest: float = key(0.4, high=1.0)
    apart: float = key(0.2, high=1.0)
    after: int = key(2, low=1)
    smallest: int = key(1, low=1)

    def start(self, weights: Arrays) -> State:
        return {"models": {"0": dict(weights)}, "members": {}, "scale": 0.0}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        models, members = dict(state["models"]), dict(state["members"])
        by_cluster: dict[str, list[Update]] = {}
        updates = list(updates)
        scale = state["scale"] or max((float(np.linalg.norm(_shared(u, set(u.delta)))) for u in updates), default=0.0)
        for update in updates:
            members.setdefault(update.site, "0")
            by_cluster.setdefault(members[update.site], []).append(update)
        for cluster, own in sorted(by_cluster.items()):
            mean = two_level_mean(own, round.domain_weights)
            models[cluster] = add_scaled(models[cluster], mean, self.server_learning_rate)
            if round.number >= self.after and (part := self._to_split(own, scale)):
                fresh = str(len(models))
                models[fresh] = models[cluster]
                members |= dict.fromkeys(part, fresh)
        new = mean_of_models(((site, models[cluster]) for site, cluster in sorted(members.items())), round, weights)
        return new, {"models": models, "members": members, "scale": scale}

    def _to_split(self, updates: Sequence[Update], scale: float) -> list[str]:
        """The sites that leave a cluster; none where it is not at rest, or its sites agree."""
        if len(updates) < 2 * self.smallest:
            return []
        common = set.intersection(*(set(update.delta) for update in updates))
        rows = np.stack([_shared(update, common) for update in updates])
        norms = np.linalg.norm(rows, axis=1)
        if norms.max() <= self.apart * scale or np.linalg.norm(rows.mean(axis=0)) >= self.rest * norms.max():
            return []
        parts = bipartition(rows)
        left, right = ([u.site for u, part in zip(updates, parts, strict=True) if part == side] for side in (0, 1))
        return right if min(len(left), len(right)) >= self.smallest else []

    def variants(self, weights: Arrays, state: State) -> dict[str, Arrays]:
        return dict(state.get("models", {}))

    def variant_of(self, state: State, site: str) -> str:
        return state["members"].get(site, "0") if "members" in state else ""


def bipartition(rows: np.ndarray) -> np.ndarray:
    """0 or 1 for each of the rows `[n, P]`, n >= 2: the parts between which the largest cosine is smallest."""
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    far = np.clip(1 - unit @ unit.T, 0, 2)
    merges = linkage(far[np.triu_indices(len(rows), 1)], "single")
    return (fcluster(merges, 2, "maxclust") != fcluster(merges, 2, "maxclust")[0]).astype(int)


def _shared(update: Update, names: set[str]) -> np.ndarray:
    """The shared ones of the tensors `names`, as one vector."""
    parts = [update.delta[n].ravel().astype(np.float64) for n in sorted(names) if n.startswith("shared/")]
    return np.concatenate(parts) if parts else np.zeros(1)
