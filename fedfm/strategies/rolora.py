"""RoLoRA.

Chen, Guo, Ju, Dalal, Zhu, Khisti, "Robust Federated Finetuning of LLMs via Alternating Optimization of LoRA", 2025,
https://arxiv.org/abs/2502.01755:

    odd rounds:   sites train B, A is the same for all;   B' = mean_k B_k
    even rounds:  sites train A, B is the same for all;   A' = mean_k A_k

Exact in every round, half of the bytes up. B goes first: it begins at zero, where A has no gradient. It takes twice the
rounds. (Another method of the same name rotates activations for quantisation.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Pass, Summary
from fedfm.strategies.lora import LoRARule


@dataclass(frozen=True)
class RoLoRA(LoRARule):
    """One factor a round, in turn."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Chen 2025, arXiv:2502.01755", "all sites", "none", "1x")

    def passes(self, round: int) -> tuple[Pass, ...]:
        return (Pass(frozen=("*.lora_A",) if round % 2 else ("*.lora_B",)),)
