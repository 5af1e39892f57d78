"""FedIT.

Zhang, Vahidian, Kuo, Li, Zhang, Yu, Zhou, Chen, "Towards Building the Federated GPT: Federated Instruction Tuning",
ICASSP 2024, https://arxiv.org/abs/2305.05644:

    server:   A' = mean_k A_k,   B' = mean_k B_k              not the mean of B_k A_k
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Summary
from fedfm.strategies.lora import LoRARule


@dataclass(frozen=True)
class FedIT(LoRARule):
    """FedAvg of both factors, with its error told: the baseline of this family."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Zhang 2024, arXiv:2305.05644", "all sites", "none", "1x")
