"""Two LoRAs on the same layers, one that all domains share and one for each domain.

After Yang, Long, Shen, Jiang, Blumenstein, "Dual-Personalizing Adapter for Federated Foundation Models", 2024,
https://arxiv.org/abs/2403.19211, which has a global and a local adapter; here the second belongs to a domain, whose
sites average it, and both are trained together:

    model:    W0 x + s B A x + s B_d A_d x
    server:   (A, B) averaged over all sites in two levels, (A_d, B_d) over those of domain d
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
class DualLoRA(FedAvg):
    """What all domains agree on goes to the shared pair, the rest to the domain's. Its rank: body.domain-lora-rank."""

    summary: ClassVar[Summary] = Summary("domains", "Yang 2024, arXiv:2403.19211", "both pairs", "none", "1.1x")
    sets: ClassVar[Mapping[str, Any]] = {"body": {"domain-lora-rank": 8}}

    def problems(self, config: RunConfig) -> list[Problem]:
        if config.body.tuning == "lora" and not config.body.domain_lora_rank:
            return [Problem("dual-lora needs a pair for each domain", "body.domain-lora-rank", "1 or more")]
        if config.body.tuning == "lora":
            return []
        what = f'dual-lora trains two LoRA pairs a layer, but body.tuning = "{config.body.tuning}" trains none'
        return [Problem(what, "body.tuning", 'body.tuning = "lora", or another strategy')]
