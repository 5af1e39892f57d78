"""MOON.

Li, He, Song, "Model-Contrastive Federated Learning", CVPR 2021, https://arxiv.org/abs/2103.16257:

    site k:   min_w F_k(w) + mu mean_x -log( e^{s_glob} / (e^{s_glob} + e^{s_prev}) ),
              s_glob = cos(z, z_glob) / T,  s_prev = cos(z, z_prev) / T
    server:   as FedAvg

z is what enters the head (of words: the mean over an example's tokens), under the present weights, under those received
(z_glob) and under those that the site ended its last round with (z_prev; of a new site, those received). The paper puts
a projection head between; here z is the body's own pooled vector, because heads belong to tasks and bodies are shared.
Two more forward passes a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import SiteRows, Summary, key
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class Moon(FedAvg):
    """FedAvg with a contrastive term. `mu`: its weight; `temperature`: T. mu = 0 is FedAvg at thrice the cost."""

    summary: ClassVar[Summary] = Summary("global", "Li 2021, arXiv:2103.16257", "all sites", "site", "2x")
    keeps: ClassVar[tuple[str, ...]] = ("previous",)
    views: ClassVar[tuple[str, ...]] = ("received", "previous")
    mu: float = key(1.0)
    temperature: float = key(0.5, low=1e-3)

    def pull(self, own: Any, others: Mapping[str, Any]) -> Any:
        near = _cosine(own, others["received"]) / self.temperature
        far = _cosine(own, others["previous"]) / self.temperature
        return self.mu * (near.logaddexp(far) - near)

    def finish(self, theta: Any, rows: SiteRows) -> dict[str, Any]:
        rows.kept["previous"] = theta.clone()
        return {"delta": theta - rows.received}


def _cosine(left: Any, right: Any) -> Any:
    """`[N, H]` and `[N, H]` to `[N]`; a vector of zeros has cosine 0 with every other."""
    lengths = left.norm(dim=1) * right.norm(dim=1)
    return (left * right).sum(dim=1) / lengths.clamp(min=1e-8)
