"""FedSA-LoRA.

Guo, Zeng, Wang, Fan, Wang, Qu, "Selective Aggregation for Low-Rank Adaptation in Federated Learning", ICLR 2025,
https://arxiv.org/abs/2410.01463:

    site k:   trains A_k and B_k; B_k stays there
    server:   A' = mean_k A_k

`sets` makes B private. With `[sharing] "*lora_B" = "domain"` a domain's sites share one B, over an A that all share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.lora import LoRARule


@dataclass(frozen=True)
class FedSALoRA(LoRARule):
    """A is general and shared, B is the site's own."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Guo 2025, arXiv:2410.01463", "A and rest", "site", "1x")
    sets: ClassVar[Mapping[str, Any]] = {"sharing": {"*lora_B": "private"}}
