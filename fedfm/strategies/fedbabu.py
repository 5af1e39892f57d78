"""FedBABU.

Oh, Kim, Yun, "FedBABU: Towards Enhanced Representation for Federated Image Classification", ICLR 2022,
https://arxiv.org/abs/2106.06042:

    site k:   local steps on F_k(w, h_0) over w alone; the head h_0 stays as it was drawn, the same for all
    server:   as FedAvg, of w
    after:    every site tunes the final (w, h_0) on its own data; that is its personal model

The head is in no message. Until the end the scores are those of the head as drawn: judge by the personal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Pass, Summary
from fedfm.strategies.fine_tune import FineTune


@dataclass(frozen=True)
class FedBABU(FineTune):
    """Only what lies before the heads is learned together. `epochs_after`: of the tuning at the end."""

    summary: ClassVar[Summary] = Summary("personalised", "Oh 2022, arXiv:2106.06042", "not heads", "none", "1x")

    def passes(self, round: int) -> tuple[Pass, ...]:
        return (Pass(frozen=("head.*",)),)
