"""FlexLoRA.

Bai, Chen, Qian, Yao, Li, "Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources", NeurIPS 2024, https://arxiv.org/abs/2402.11505:

    server:   U S V^T = mean_k B_k A_k;     B' = U_r S_r^{1/2},   A' = S_r^{1/2} V_r^T

The best product of rank r (Eckart and Young); its error is the part of the spectrum that is cut off. Rows of A' stand
in order of falling singular value. Where the mean product has a smaller rank, as when only sites of small ranks were
asked, the rows that it leaves over are as in a new LoRA: zero in B', in A' as before. Zero in both never trains again.
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
                new[pair.b], new[pair.a] = _best(product, before[pair.a])
        return new


def _best(product: np.ndarray, before: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """B' `[out, r]` and A' `[r, in]` of a product `[out, in]`; `before`: A."""
    left, values, right = np.linalg.svd(product, full_matrices=False)
    rank = min(len(before), int((values > values[0] * max(product.shape) * np.finfo(values.dtype).eps).sum()))
    root = np.sqrt(values[:rank])
    b, a = np.zeros((len(product), len(before))), before.astype(np.float64)
    b[:, :rank], a[:rank] = left[:, :rank] * root, root[:, None] * right[:rank]
    return b, a
