"""All of a domain's data in one place: the bound from above, which no federation may do in earnest.

    domain d:   w_d <- steps on the pooled examples of its sites, from w_d

In a round the pool takes as many steps as the domain's sites would take together, on the same number of examples: the
batches are cut from the pooled examples, drawn anew in each epoch. Its optimiser begins anew in each round, as the
sites' do. What [update] and [simulation] do to updates does not touch it: there are none. For simulations only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedfm.errors import Problem
from fedfm.strategies.base import Summary
from fedfm.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from fedfm.config import RunConfig


@dataclass(frozen=True)
class Centralised(FedAvg):
    """No federation: one model a domain, trained on the pooled data of its sites."""

    summary: ClassVar[Summary] = Summary("bounds", "", "a domain", "none", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"*": "domain"}}
    pools: ClassVar[str] = "domain"

    def problems(self, config: RunConfig) -> list[Problem]:
        if config.engine.name != "flower":
            return []
        what = f"{config.strategy.name} pools the data of sites, which real sites do not hand over"
        return [Problem(what, "strategy.name", 'engine.name = "local" or "ray", which simulate')]
