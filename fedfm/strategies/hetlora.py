"""HetLoRA.

Cho, Liu, Xu, Fahrezi, Joshi, "Heterogeneous LoRA for Federated Fine-tuning of On-Device Foundation Models", EMNLP 2024,
https://arxiv.org/abs/2401.06432:

    server:   A' = sum_k q_k A_k,   B' = sum_k q_k B_k,   q_k proportional to p_k ||B_k A_k||_F

The norm is over all layers, and p_k the share in the two-level mean. Sites whose update says little count little. What
the paper adds for sites that lower their own rank (a decay of the last rows, self-pruning) is left out. Where no site
of a round has the last rows they would be zero in A' and in B', and never train again: in A' they stay as before.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, RunningMean, add_scaled, group_of, norm
from fedfm.strategies.base import Round, State, Summary, Update, two_level_mean, two_level_shares
from fedfm.strategies.lora import LoRARule, mean_products, pairs_of, product_error, trained

ROUNDING = 1e-6


@dataclass(frozen=True)
class HetLoRA(LoRARule):
    """Means of both factors, by how much each site's product says."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Cho 2024, arXiv:2401.06432", "all sites", "none", "1x")
    mixes_ranks: ClassVar[bool] = True

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        mean = two_level_mean(updates, round.domain_weights)
        shares = two_level_shares(updates, round.domain_weights)
        pairs = [pair for pair in pairs_of(weights) if group_of(pair.a) == group_of(pair.b)]
        sizes = {update.site: _size(weights, update, pairs) for update in updates}
        factors = RunningMean()
        for update in updates:
            for name in {name for pair in pairs for name in (pair.a, pair.b)} & update.delta.keys():
                factors.add({name: update.delta[name]}, shares[name][update.site] * sizes[update.site])
        new = add_scaled(weights, mean | factors.value(), self.server_learning_rate)
        for pair in pairs:
            new[pair.a], new[pair.b] = _alive(new[pair.a], new[pair.b], weights[pair.a])
        products = mean_products(weights, updates, round.domain_weights)
        return new, {"told": {"aggregation_error": product_error(weights, new, products)}}


def _size(weights: Arrays, update: Update, pairs) -> float:
    """||B_k A_k||_F over the pairs that the site has."""
    own = [pair for pair in pairs if group_of(pair.b) in ("shared", update.domain)]
    products = {p.b: np.asarray(trained(weights, update, p.b) @ trained(weights, update, p.a)) for p in own}
    return norm(products) if products else 1.0


def _alive(a: np.ndarray, b: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A' `[r, in]` and B' `[out, r]` with the rows of A from `before` that are zero, but for rounding, in both."""
    size, least = np.linalg.norm(before, axis=1), ROUNDING * np.linalg.norm(before)
    dead = (np.linalg.norm(a, axis=1) <= ROUNDING * size) & (np.linalg.norm(b, axis=0) <= least)
    return np.where(dead[:, None], before, a), np.where(dead, 0, b).astype(b.dtype)
