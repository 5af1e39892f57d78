"""pFedMe.

Dinh, Tran, Nguyen, "Personalized Federated Learning with Moreau Envelopes", NeurIPS 2020,
https://arxiv.org/abs/2006.08848:

    site k:   theta_k ~ argmin F_k(theta) + (lambda / 2) ||theta - w_k||^2          by `inner_steps` local steps, then
              w_k <- w_k - eta lambda (w_k - theta_k);    both from w^t, again and again over the round
    server:   w^{t+1} = (1 - beta) w^t + beta mean_k w_k

theta_k is the site's own model and stays there. eta is the local learning rate of each tensor, bounded so that
eta lambda <= 1 (w_k never passes theta_k). beta is the server learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from fedfm.strategies.base import SiteRows, Summary, key
from fedfm.strategies.fedavg import FedAvg


@dataclass(frozen=True)
class PFedMe(FedAvg):
    """Personal models in an envelope around the shared one. `envelope`: lambda; `inner_steps`: K of the paper."""

    summary: ClassVar[Summary] = Summary("personalised", "Dinh 2020, arXiv:2006.08848", "all sites", "site", "1x")
    averages: ClassVar[bool] = True
    keeps: ClassVar[tuple[str, ...]] = ("personal", "_anchor")
    envelope: float = key(15.0, low=1e-6)
    inner_steps: int = key(5, low=1)

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        anchor = rows.kept["_anchor"]
        if rows.step == 0:
            anchor.copy_(received)
        elif rows.step % self.inner_steps == 0:
            self._follow(anchor, theta, rows.rate)
        return grad + self.envelope * (theta - anchor)

    def finish(self, theta: Any, rows: SiteRows) -> dict[str, Any]:
        anchor = rows.kept["_anchor"]
        self._follow(anchor, theta, rows.rate)
        rows.kept["personal"] = theta.clone()
        return {"delta": anchor - rows.received}

    def _follow(self, anchor: Any, theta: Any, rate: Any) -> None:
        anchor.sub_((rate * self.envelope).clamp(max=1.0) * (anchor - theta))
