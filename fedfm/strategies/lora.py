"""What the LoRA-aware strategies share: the sites' own products B_k A_k, and how far the server's are from their mean.

A mean of factors is not the mean of products (p_k the shares of the two-level mean, Bbar and Abar means by them):

    sum_k p_k B_k A_k - Bbar Abar = sum_k p_k (B_k - Bbar)(A_k - Abar)

    aggregation error = || mean(B A) - (B' A' + merged' - merged) ||_F / || mean(B A) ||_F     over all layers together

`merged/<module>.weight` is in units of B A: the model adds it to the frozen weight times the scale s = alpha / r, which
is the same for all sites. A tensor that is no part of a pair is averaged as in FedAvg. Where B belongs to a domain and
A to all, the products are those of the domain's sites.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import numpy as np

from fedfm.arrays import Arrays, add_scaled, group_of, norm
from fedfm.errors import Problem
from fedfm.strategies.base import Round, State, Strategy, Update, shares_of, two_level_mean

if TYPE_CHECKING:
    from fedfm.config import RunConfig

A, B = ".lora_A", ".lora_B"


class Pair(NamedTuple):
    """The names of a layer's factors, and of what is merged into its frozen weight."""

    a: str
    b: str
    merged: str


@dataclass(frozen=True)
class LoRARule(Strategy):
    """FedAvg of all tensors; `combine` then sets factors and merged parts from the mean products."""

    each: ClassVar[bool] = True

    def combine(
        self, before: Arrays, mean: Arrays, products: Mapping[Pair, np.ndarray], round: Round
    ) -> Mapping[str, np.ndarray]:
        """Tensors that are to be other than in `mean`. `products`: pair -> mean of the sites' B A `[out, in]`."""
        return {}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        mean = add_scaled(weights, two_level_mean(updates, round.domain_weights), self.server_learning_rate)
        products = mean_products(weights, updates, round.domain_weights)
        new = dict(mean)
        for name, value in self.combine(weights, mean, products, round).items():
            new[name] = value.astype(weights[name].dtype)
        return new, {"told": {"aggregation_error": product_error(weights, new, products)}}

    def problems(self, config: RunConfig) -> list[Problem]:
        name, found = config.strategy.name, []
        if config.body.tuning != "lora":
            what = f'{name} averages LoRA updates, but body.tuning = "{config.body.tuning}" trains none'
            found.append(Problem(what, "body.tuning", 'body.tuning = "lora", or another strategy'))
        if self.server_learning_rate != 1 and type(self).combine is not LoRARule.combine:
            what = f"{name} sets products of LoRA factors to the sites' mean product, which knows no step of the server"
            found.append(Problem(what, "strategy.server-learning-rate", "strategy.server-learning-rate = 1, or fedit"))
        return found


@dataclass(frozen=True)
class MergingRule(LoRARule):
    """A rule that moves part of the mean product into the frozen weights."""

    def more_weights(self, weights: Arrays) -> Arrays:
        shared = [pair for pair in pairs_of(weights) if group_of(pair.b) == "shared"]
        return {p.merged: np.zeros((len(weights[p.b]), weights[p.a].shape[1]), weights[p.b].dtype) for p in shared}


def pairs_of(weights: Mapping[str, np.ndarray]) -> list[Pair]:
    """The pairs of factors, in order of name; a B without an A (kept private, say) makes none."""
    found = []
    for b in sorted(name for name in weights if name.endswith(B)):
        stem = b.partition("/")[2].removesuffix(B)
        a = next((f"{group}/{stem}{A}" for group in (group_of(b), "shared") if f"{group}/{stem}{A}" in weights), "")
        if a:
            found.append(Pair(a, b, f"merged/{stem}.weight"))
    return found


def mean_products(
    weights: Arrays, updates: Sequence[Update], domain_weights: Mapping[str, float]
) -> dict[Pair, np.ndarray]:
    """The two-level mean of the sites' own B A, float64, of every pair of which anything was sent."""
    products: dict[Pair, np.ndarray] = {}
    for pair in pairs_of(weights):
        group = group_of(pair.b)
        senders = [
            update
            for update in updates
            if (pair.a in update.delta or pair.b in update.delta) and group in ("shared", update.domain)
        ]
        shares = shares_of(senders, domain_weights)
        for update in senders:
            b, a = (trained(weights, update, name) for name in (pair.b, pair.a))
            products[pair] = products.get(pair, 0) + shares[update.site] * (b @ a)
    return products


def to_rank(arrays: Mapping[str, np.ndarray], rank: int) -> Arrays:
    """What a site of `rank` has of tensors: the first rows of each A, the first columns of each B, all of the rest."""
    cut = dict(arrays)
    for name, value in arrays.items():
        if name.endswith(A):
            cut[name] = value[:rank]
        elif name.endswith(B):
            cut[name] = np.ascontiguousarray(value[:, :rank])
    return cut


def from_rank(delta: Arrays, weights: Arrays, rank: int) -> Arrays:
    """The change of a site of `rank` at the server's rank: what the site does not have is zero in its model."""
    whole = dict(delta)
    for name, value in delta.items():
        if name.endswith((A, B)) and value.shape != weights[name].shape:
            whole[name] = -weights[name].astype(value.dtype)
            if name.endswith(A):
                whole[name][:rank] = value
            else:
                whole[name][:, :rank] = value
    return whole


def trained(weights: Arrays, update: Update, name: str) -> np.ndarray:
    """A tensor as the site ended with it, float64."""
    change = update.delta.get(name)
    return weights[name].astype(np.float64) + (0 if change is None else change)


def product_error(before: Arrays, after: Arrays, products: Mapping[Pair, np.ndarray]) -> float:
    """The aggregation error of a round; 0 where no product is anything."""
    gaps, wanted = {}, {}
    for pair, product in products.items():
        made = after[pair.b].astype(np.float64) @ after[pair.a]
        if pair.merged in after:
            made = made + after[pair.merged] - before[pair.merged]
        gaps[pair.b], wanted[pair.b] = product - made, product
    size = norm(wanted)
    return norm(gaps) / size if size > 0 else 0.0
