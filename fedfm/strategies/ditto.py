"""Ditto.

Li, Hu, Beirami, Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
https://arxiv.org/abs/2012.04221:

    site k:   w_k by FedAvg's local steps from w^t;        v_k: local steps on F_k(v) + (lambda / 2) ||v - w^t||^2
    server:   as FedAvg, of w_k

v_k never leaves the site. Its fixed point given w is argmin F_k(v) + (lambda / 2) ||v - w||^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import ALL, Pass, SiteRows, Summary, key
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Ditto(FedAvg):
    """FedAvg, and beside it a model of each site. `pull_to_global`: lambda; `personal_epochs`: 0 is local.epochs."""

    summary: ClassVar[Summary] = Summary("personalised", "Li 2021, arXiv:2012.04221", "all sites", "site", "2x")
    keeps: ClassVar[tuple[str, ...]] = ("personal",)
    pull_to_global: float = key(0.1)
    personal_epochs: int = key(0)

    def passes(self, round: int) -> tuple[Pass, ...]:
        return ALL, Pass(epochs=self.personal_epochs, personal=True)

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        return grad + self.pull_to_global * (theta - received) if rows.which.personal else grad
