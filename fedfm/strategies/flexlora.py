"""FlexLoRA.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, https://arxiv.org/abs/2402.11505:

    server:   U S V^T = mean_k B_k A_k;     B' = U_r S_r^{1/2},   A' = S_r^{1/2} V_r^T

The best product of rank r (Eckart and Young); its error is the part of the spectrum that is cut off. Rows of A' stand
in order of falling singular value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays
from fedfm.strategies.base import Round, Summary
from fedfm.strategies.lora import LoRARule, Pair


@dataclass(frozen=True)
class FlexLoRA(LoRARule):
    """The mean product, cut to the rank of the adapter."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Bai 2024, arXiv:2402.11505", "all sites", "none", "1x")
    mixes_ranks: ClassVar[bool] = True
    averages: ClassVar[bool] = False  # of the factors: others make the same product

    def combine(
        self, before: Arrays, mean: Arrays, products: Mapping[Pair, np.ndarray], round: Round
    ) -> Mapping[str, np.ndarray]:
        new: dict[str, np.ndarray] = {}
        for pair, product in products.items():
            if pair.a.partition("/")[0] == pair.b.partition("/")[0] and np.any(product):
                rank = len(before[pair.a])
                left, values, right = np.linalg.svd(product, full_matrices=False)
                root = np.sqrt(values[:rank])
                new[pair.b], new[pair.a] = _padded(left[:, :rank] * root, before[pair.b]), root[:, None] * right[:rank]
                new[pair.a] = _padded(new[pair.a], before[pair.a])
        return new


def _padded(value: np.ndarray, like: np.ndarray) -> np.ndarray:
    """With zeros, where a layer is narrower than the rank."""
    table = np.zeros(like.shape)
    table[: value.shape[0], : value.shape[1]] = value
    return table
