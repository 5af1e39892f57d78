"""FedAdam: FedAvg's mean change as the gradient of Adam at the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295:

    m <- b1 m + (1 - b1) Delta,   v <- b2 v + (1 - b2) Delta^2,   w <- w + eta m / (sqrt(v) + tau)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.server_optimizers import Adaptive, SecondMoment, adam


@dataclass(frozen=True)
class FedAdam(Adaptive):
    """Adam at the server; `form` = "flower" adds the bias correction that the paper leaves out. Other keys: there."""

    summary: ClassVar[Summary] = Summary("global", "Reddi 2021, arXiv:2003.00295", "all sites", "server", "1x")
    second_moment: ClassVar[SecondMoment] = staticmethod(adam)
    corrects_bias: ClassVar[bool] = True
