"""FedEx-LoRA.

Singhal, Ponkshe, Vepakomma, "FedEx-LoRA: Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation
Models", 2024, https://arxiv.org/abs/2410.09432:

    server:   A' = mean_k A_k,   B' = mean_k B_k,   and the residual mean_k B_k A_k - B' A' goes into the frozen weight

Exact, with the adapter kept. The residual is sent dense (out x in): as much as full fine-tuning on the way down.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays
from fedfm.strategies.base import Round, Summary
from fedfm.strategies.lora import MergingRule, Pair


@dataclass(frozen=True)
class FedExLoRA(MergingRule):
    """FedIT, and what its means of factors miss."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Singhal 2024, arXiv:2410.09432", "all sites", "none", "1x")

    def combine(
        self, before: Arrays, mean: Arrays, products: Mapping[Pair, np.ndarray], round: Round
    ) -> Mapping[str, np.ndarray]:
        return {
            pair.merged: before[pair.merged] + product - mean[pair.b].astype(np.float64) @ mean[pair.a]
            for pair, product in products.items()
            if pair.merged in before
        }
