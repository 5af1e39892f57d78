"""FedNova.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020, https://arxiv.org/abs/2007.07481:

    site k:   tau_k local steps, which weigh its gradients by a_k;   d_k = (w^t - w_k) / ||a_k||_1
    server:   w^{t+1} = w^t - eta_s tau_eff sum_k p_k d_k,           tau_eff = sum_k p_k ||a_k||_1

    ||a_k||_1 = tau                                                      plain SGD
                [tau - rho (1 - rho^tau) / (1 - rho)] / (1 - rho)        heavy-ball momentum rho
                [1 - (1 - eta mu)^tau] / (eta mu)                        proximal term, or decay, of strength eta mu

p_k are the shares of the two-level mean of each tensor. Fewer or more steps then change how much a site has
learned, and not what the federation minimises. AdamW weighs gradients in a way that has no such norm: its tau is used.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from fedfm.arrays import Arrays, add_scaled
from fedfm.errors import Problem
from fedfm.strategies.base import Round, State, Strategy, Summary, Update, key, two_level_shares

if TYPE_CHECKING:
    from fedfm.config import RunConfig


def effective_steps(tau: float, momentum: float = 0.0, decay: float = 0.0) -> float:
    """||a||_1 of tau steps of SGD with momentum rho, or with a pull of strength decay = eta mu; not of both."""
    if momentum and decay:
        raise ValueError("the norm is known for momentum or for decay, not for both")
    if momentum:
        return (tau - momentum * (1 - momentum**tau) / (1 - momentum)) / (1 - momentum)
    return (1 - (1 - decay) ** tau) / decay if decay else tau


@dataclass(frozen=True)
class FedNova(Strategy):
    """FedAvg of normalised changes. `momentum`: of the sites' SGD, which the server cannot see and must be told."""

    summary: ClassVar[Summary] = Summary("global", "Wang 2020, arXiv:2007.07481", "all sites", "none", "1x")
    each: ClassVar[bool] = True
    keeps_partial: ClassVar[bool] = True
    counts_steps: ClassVar[bool] = True
    momentum: float = key(0.0, high=0.999999)

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        steps = {u.site: effective_steps(u.metrics["steps"], self.momentum) for u in updates}
        shares = two_level_shares(updates, round.domain_weights)
        effective = {name: sum(p * steps[site] for site, p in own.items()) for name, own in shares.items()}
        new = weights
        for update in updates:
            for name, change in update.delta.items():
                scale = self.server_learning_rate * effective[name] * shares[name][update.site] / steps[update.site]
                new = add_scaled(new, {name: change}, scale)
        return new, state

    def problems(self, config: RunConfig) -> list[Problem]:
        found = []
        for domain in config.domains:
            local = config.local_for(domain)
            if local.optimizer == "sgd" and local.momentum != self.momentum:
                seen = f"domain {domain} has local.momentum = {local.momentum:g}"
                what = f"fednova cannot see the state of the sites' optimisers, and must be told of it: {seen}"
                found.append(Problem(what, "strategy.momentum", f"strategy.momentum = {local.momentum:g}"))
            if local.schedule != "constant":
                what = f"fednova has no norm of steps whose learning rate falls: domain {domain}"
                found.append(Problem(what, "local.schedule", 'local.schedule = "constant"'))
        return found

    def advice(self, config: RunConfig) -> list[str]:
        local_of = {domain: config.local_for(domain) for domain in config.domains}
        with_adam = [domain for domain, local in local_of.items() if local.optimizer == "adamw"]
        unseen = [domain for domain, local in local_of.items() if local.clip_norm or local.weight_decay]
        found = []
        if with_adam:
            whose = ", ".join(with_adam)
            found.append(f"fednova's normalisation is exact for SGD; {whose}: adamw, of which it takes the steps")
        if unseen:
            whose = ", ".join(unseen)
            found.append(f"fednova's norm of steps knows of no clip-norm and no weight-decay, which {whose} has")
        return found
