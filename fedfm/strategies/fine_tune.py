"""FedAvg with local fine-tuning after training.

Wang, Mathews, Kiddon, Eichner, Beaufays, Ramage, "Federated Evaluation of On-device Personalization", 2019,
https://arxiv.org/abs/1910.10252:

    rounds:   as FedAvg
    after:    v_k <- local epochs on F_k from w^T at every site; scored beside w^T, never mixed with it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fedfm.strategies.base import Summary, key
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class FineTune(FedAvg):
    """The simplest personalisation, and often hard to beat. `epochs_after`: local epochs on the final model."""

    summary: ClassVar[Summary] = Summary("personalised", "Wang 2019, arXiv:1910.10252", "all sites", "none", "1x")
    epochs_after: int = key(1, low=1)

    @property
    def tunes_after(self) -> int:  # type: ignore[override]
        return self.epochs_after
