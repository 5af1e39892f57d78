"""FedPer.

Arivazhagan, Aggarwal, Singh, Choudhary, "Federated Learning with Personalization Layers", 2019,
https://arxiv.org/abs/1912.00818:

    site k:   local steps on F_k(w, h_k) from (w^t, h_k),  head h_k kept at the site
    server:   as FedAvg, of w

`sets` makes the heads private; a user's own [sharing] patterns come first, so that more, or less, may stay at a site.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedPer(FedAvg):
    """FedAvg of the body and the adapters; every site has a head of its own."""

    summary: ClassVar[Summary] = Summary("personalised", "Arivazhagan, arXiv:1912.00818", "not heads", "site", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"head.*": "private"}}
