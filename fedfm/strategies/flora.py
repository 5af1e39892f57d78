"""FLoRA.

Wang, Shen, He, Sun, Wang, Lyu, Li, "FLoRA: Federated Fine-Tuning Large Language Models with Heterogeneous Low-Rank
Adaptations", NeurIPS 2024, https://arxiv.org/abs/2409.05976:

    server:   [p_1 B_1 ... p_K B_K] [A_1; ...; A_K] = sum_k p_k B_k A_k, merged into the frozen weight
              A is drawn anew, B = 0

Exact, and of higher rank than r over the rounds. The merged matrix is sent dense (out x in), which is more than the
stacked factors where K r is small: the bytes are counted as they are.
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
class FLoRA(MergingRule):
    """The mean product goes into the body; every round begins with fresh factors."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Wang 2024, arXiv:2409.05976", "all sites", "none", "1x")
    mixes_ranks: ClassVar[bool] = True
    averages: ClassVar[bool] = False  # of the factors: they begin anew

    def combine(
        self, before: Arrays, mean: Arrays, products: Mapping[Pair, np.ndarray], round: Round
    ) -> Mapping[str, np.ndarray]:
        new = {}
        for pair, product in products.items():
            if pair.merged not in before:
                continue
            draw = np.random.default_rng([round.seed, round.number, *pair.a.encode()])
            bound = 1 / np.sqrt(before[pair.a].shape[1])  # as LoRA draws A at the start
            new[pair.merged] = before[pair.merged] + self.server_learning_rate * product
            new[pair.a] = draw.uniform(-bound, bound, before[pair.a].shape)
            new[pair.b] = np.zeros(before[pair.b].shape)
        return new
