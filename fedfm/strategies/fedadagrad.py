"""FedAdagrad: FedAvg's mean change as the gradient of Adagrad at the server.

Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295:

    m <- b1 m + (1 - b1) Delta,   v <- v + Delta^2,   w <- w + eta m / (sqrt(v) + tau)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Summary, key
from fedfm.strategies.server_optimizers import Adaptive, SecondMoment, adagrad


@dataclass(frozen=True)
class FedAdagrad(Adaptive):
    """Adagrad at the server; `beta1` is 0 as in the paper, `beta2` is not used. Other keys: see server_optimizers."""

    summary: ClassVar[Summary] = Summary("global", "Reddi 2021, arXiv:2003.00295", "all sites", "server", "1x")
    second_moment: ClassVar[SecondMoment] = staticmethod(adagrad)
    beta1: float = key(0.0, high=0.999999)
