"""FedBuff.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022, https://arxiv.org/abs/2106.06639:

    site k:   trains without pause, from the newest weights there are when it begins, w^{v_k}
    server:   when `buffer` changes have come:   w^{t+1} = w^t + eta_s mean_k Delta_k / (1 + s_k)^a,    s_k = t - v_k

A round is one step of the server. Who comes when is the virtual clock's affair ([simulation]; without one a site takes
as long as it has steps). The mean is the two-level one among the changes of the buffer; with a buffer of all sites,
which then begin and end together, this is FedAvg. Sites that are slow have less to say: nothing makes up for that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, two_level_mean


@dataclass(frozen=True)
class FedBuff(Strategy):
    """Nobody waits for the slowest. `buffer`: changes of one step; `staleness_power`: a."""

    summary: ClassVar[Summary] = Summary("asynchronous", "Nguyen 2022, arXiv:2106.06639", "all sites", "server", "1x")
    each: ClassVar[bool] = True
    asynchronous: ClassVar[bool] = True
    buffer: int = key(4, low=1)
    staleness_power: float = key(0.5)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        begun = state.get("schedule", {}).get("version", {})
        late = (
            self._weighed(update, round.number - 1 - begun.get(update.site, round.number - 1)) for update in updates
        )
        mean = two_level_mean(late, round.domain_weights)
        return add_scaled(weights, mean, self.server_learning_rate), state

    def _weighed(self, update: Update, staleness: int) -> Update:
        factor = (1 + staleness) ** -self.staleness_power
        return replace(update, delta={name: factor * value.astype(np.float64) for name, value in update.delta.items()})

    def variants(self, weights: Arrays, state: State) -> dict[str, Arrays]:
        return dict(state.get("versions", {}))

    def variant_of(self, state: State, site: str) -> str:
        return str(state["schedule"]["version"][site]) if "schedule" in state else ""
