"""One federation for each domain: what a joint federation has to be compared with.

    domain d:   w_d^{t+1} = w_d^t + eta_s * mean_{k in d} Delta_k        nothing is shared between domains

The same as running FedAvg on each domain alone, in one run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class PerDomain(FedAvg):
    """A federation of its own for each domain; FedAvg in each."""

    summary: ClassVar[Summary] = Summary("bounds", "", "a domain", "none", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"*": "domain"}}
