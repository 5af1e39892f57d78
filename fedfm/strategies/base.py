"""What a strategy is, and what it is given.

A strategy is a frozen dataclass of its settings with two halves: at the server `start` and `aggregate`, pure functions
of weights, updates and state; at the site `correct`, the gradient that a site follows. It never sees a message, and its
server half knows no torch (the site half uses tensor methods only).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, Protocol

from fedfm.arrays import Arrays, RunningMean

State = dict[str, Any]  # Arrays and plain numbers: what a checkpoint can hold


@dataclass(frozen=True)
class Update:
    """What a site sends: `delta` = trained - received, for the tensors it trained and shares.

    A simulation may hand over the sites of a pack as one update: their names joined by "+", their mean by examples as
    `delta` (float64), the sum of their examples. A strategy that must see every site's own update says so by `each`.
    """

    site: str
    domain: str
    num_examples: int
    delta: Arrays
    metrics: Mapping[str, float] = field(default_factory=dict)


class Summary(NamedTuple):
    """A strategy in one row of `fedfm list strategies`. `cost`: of a site's step, FedAvg being 1."""

    paper: str
    shared_by: str
    state: str
    cost: str


class Strategy(Protocol):
    """One algorithm, both halves."""

    summary: ClassVar[Summary]
    each: ClassVar[bool]  # must `aggregate` see every site's own update (a median), or do means of some do (a mean)?
    server_learning_rate: float

    def start(self, weights: Arrays) -> State:
        """The server's state before the first round."""
        ...

    def aggregate(
        self, weights: Arrays, updates: Iterable[Update], state: State, domain_weights: Mapping[str, float]
    ) -> tuple[Arrays, State]:
        """New weights and state. `updates` may be read once, one at a time, in order of site name."""
        ...

    def correct(self, theta: Any, grad: Any, received: Any, site_state: Any) -> Any:
        """The gradient that the sites in the rows of `theta` follow; all tensors `[k, P]`."""
        ...


def two_level_mean(updates: Iterable[Update], domain_weights: Mapping[str, float]) -> Arrays:
    """Mean delta of each tensor: by examples inside a domain, by `w_d` between domains, over those who sent it.

        mean_t = sum_d w_d * (sum_{k in d} n_k delta_{k,t} / sum_{k in d} n_k) / sum_d w_d

    Both sums run over the sites and domains that sent tensor t. A flat mean by examples would let the domain with most
    data rule the shared tensors. One set of float64 sums for each domain is held, whatever the number of sites.
    """
    by_domain: dict[str, RunningMean] = {}
    for update in updates:
        by_domain.setdefault(update.domain, RunningMean()).add(update.delta, update.num_examples)
    between = RunningMean()
    for domain in sorted(by_domain):
        between.add(by_domain[domain].value(), domain_weights.get(domain, 1.0))
    return between.value()
