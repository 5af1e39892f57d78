"""What strategies share that combine the domains' changes of the shared tensors otherwise than by a mean.

Inside a domain sites are averaged by examples. Between domains a rule combines the rows of `[D, P]`, a row a domain, as
one vector of all shared tensors, or tensor by tensor (`scope`). What belongs to one domain is not touched. Tensors that
not every domain sent are combined among those that did. Weights w_d multiply the rows first, so that they sum to D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled, group_of
from fedfm.strategies.base import Round, State, Strategy, Update, domain_means, key, mean_of_domains

Combine = Callable[[np.ndarray], np.ndarray]  # [D, P] -> [P]


@dataclass(frozen=True)
class BetweenDomains(Strategy):
    """FedAvg inside domains; `combine` between them. `scope`: "all" shared tensors as one vector, or each "tensor"."""

    scope: str = key("all", choices=("all", "tensor"))

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        """`[D, P]`, in order of the domains' names, to `[P]`."""
        raise NotImplementedError

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        means = domain_means(updates)
        step = mean_of_domains(means, round.domain_weights)
        step |= combined(means, round.domain_weights, lambda rows: self.combine(rows, round), self.scope)
        return add_scaled(weights, step, self.server_learning_rate), state


@dataclass(frozen=True)
class WholeVector(BetweenDomains):
    """As BetweenDomains, of rules that treat every coordinate alone, so that there is no choice of scope."""

    scope: ClassVar[str] = "all"


def combined(means: Mapping[str, Arrays], weights: Mapping[str, float], combine: Combine, scope: str) -> Arrays:
    """The shared tensors of the domains' means, combined."""
    owners: dict[tuple[str, ...], list[str]] = {}  # domains that sent a tensor -> its name
    for name in sorted({name for own in means.values() for name in own if group_of(name) == "shared"}):
        owners.setdefault(tuple(domain for domain in means if name in means[domain]), []).append(name)
    found: Arrays = {}
    for domains, names in owners.items():
        factors = np.array([weights.get(domain, 1.0) for domain in domains])
        factors *= len(domains) / factors.sum()
        for part in [names] if scope == "all" else [[name] for name in names]:
            rows = np.stack([np.concatenate([means[d][name].ravel() for name in part]) for d in domains])
            flat, first = combine(factors[:, None] * rows), 0
            for name in part:
                shape = means[domains[0]][name].shape
                count = int(np.prod(shape))
                found[name] = flat[first : first + count].reshape(shape)
                first += count
    return found


def scaled(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """Rows divided by the largest norm among them, and that norm: solvers like numbers around one. Zeros stay zeros."""
    size = float(np.linalg.norm(rows, axis=1).max())
    return (rows / size, size) if size > 0 else (rows, 1.0)
