"""FedProx.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks", MLSys 2020,
https://arxiv.org/abs/1812.06127:

    site k:   min_w F_k(w) + (mu / 2) ||w - w^t||^2,        gradient  g_k(w) + mu (w - w^t)
    server:   as FedAvg

The norm is squared, and runs over the trainable tensors (under LoRA over A and B, not over their product). With an
adaptive local optimiser the proximal gradient passes through the preconditioner, as it does in the authors' form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import SiteRows, Summary, key
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg with a proximal term at the sites. `proximal_mu`: mu; 0 is FedAvg to the bit."""

    summary: ClassVar[Summary] = Summary("global", "Li 2020, arXiv:1812.06127", "all sites", "none", "1x")
    keeps_partial: ClassVar[bool] = True  # as in the paper, which compares with a FedAvg that drops stragglers
    proximal_mu: float = key(0.01)

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        if self.proximal_mu == 0:
            return grad
        return grad + self.proximal_mu * (theta - received)
