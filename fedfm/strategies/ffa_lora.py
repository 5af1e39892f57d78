"""FFA-LoRA.

Sun, Li, Li, Ding, "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024,
https://arxiv.org/abs/2403.12313:

    site k:   trains B_k; A stays as it was drawn, the same for all, and is in no message
    server:   B' = mean_k B_k,   so that B' A = mean_k B_k A

Exact, half of the bytes; the update lives in the r input directions that A was drawn with, which costs where the body
is not well pretrained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Pass, Summary
from fedfm.strategies.lora import LoRARule


@dataclass(frozen=True)
class FFALoRA(LoRARule):
    """Only B is trained and averaged."""

    summary: ClassVar[Summary] = Summary("LoRA-aware", "Sun 2024, arXiv:2403.12313", "B and rest", "none", "1x")

    def passes(self, round: int) -> tuple[Pass, ...]:
        return (Pass(frozen=("*.lora_A",)),)
