"""FedRep.

Collins, Hassani, Mokhtari, Shakkottai, "Exploiting Shared Representations for Personalized Federated Learning", ICML
2021, https://arxiv.org/abs/2102.07078:

    site k:   h_k <- tau_h epochs on F_k(w^t, h) over h alone;     w_k <- local epochs on F_k(w, h_k) over w alone
    server:   as FedAvg, of w
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import Pass, Summary, key
from fedfm.strategies.fedavg import FedAvg

HEAD = ("head.*",)


@dataclass(frozen=True)
class FedRep(FedAvg):
    """Heads first, then the rest against them. `head_epochs`: tau_h; local.epochs are those of the rest."""

    summary: ClassVar[Summary] = Summary("personalised", "Collins 2021, arXiv:2102.07078", "not heads", "site", "2x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"head.*": "private"}}
    head_epochs: int = key(1, low=1)

    def passes(self, round: int) -> tuple[Pass, ...]:
        return Pass(only=HEAD, epochs=self.head_epochs), Pass(frozen=HEAD)
