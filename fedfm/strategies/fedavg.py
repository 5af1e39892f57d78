"""FedAvg.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017, https://arxiv.org/abs/1602.05629, with the two-level mean of fedfm and a server learning rate
(Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295):

    site k:   w_k <- local steps on F_k from w^t,          Delta_k = w_k - w^t
    server:   w^{t+1} = w^t + eta_s * mean_k Delta_k
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, domain_means, key, mean_of_domains
from fedfm.strategies.domain_weights import POLICIES, Losses, weigh


@dataclass(frozen=True)
class FedAvg(Strategy):
    """The baseline: mean of the sites' updates.

    `server_learning_rate`: eta_s; 1 replaces the weights by the mean. `domain_weights`: how domains count, see the
    module of that name.
    """

    summary: ClassVar[Summary] = Summary("global", "McMahan 2017, arXiv:1602.05629", "all sites", "none", "1x")

    domain_weights: str = key("given", choices=POLICIES)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        losses = Losses()
        means = domain_means(losses.watch(updates))
        chosen, policy = weigh(self.domain_weights, round.domain_weights, losses.examples, losses.means(), state)
        return add_scaled(weights, mean_of_domains(means, chosen), self.server_learning_rate), policy
