"""Local normalisation.

After Li, Jiang, Zhang, Kamp, Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR
2021, https://arxiv.org/abs/2102.07623. A Transformer has no batch statistics; what remains of the idea is that scale
and shift of its LayerNorms (and of the image adapter's last norm) stay at the site:

    site k:   local steps on F_k(w, n_k) from (w^t, n_k),  norms n_k kept at the site
    server:   as FedAvg, of w

Which norms there are follows from body.tuning: with `layernorm` and `full` those of the body, with `lora` and `head`
only that of the image adapter trains at all. (The GroupNorms inside the adapter's stem have no names of their own and
are averaged: GroupNorm has no batch statistics either.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.fedavg import FedAvg

if TYPE_CHECKING:
    from fedfm.config import RunConfig


@dataclass(frozen=True)
class LocalNorm(FedAvg):
    """FedAvg of everything but the normalisation layers."""

    summary: ClassVar[Summary] = Summary("personalised", "Li 2021, arXiv:2102.07623", "not norms", "site", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"*[Nn]orm*": "private"}}

    def advice(self, config: RunConfig) -> list[str]:
        if config.body.tuning in ("layernorm", "full"):
            return []
        return [
            f'local-norm: with body.tuning = "{config.body.tuning}" no norm of the body trains, so that only those of '
            "image adapters stay at their sites"
        ]
