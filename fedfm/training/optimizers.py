"""Optimisers as row operations: `start(theta) -> state`, `step(theta, grad, state, rate, t)` in place.

All tensors are `[k, P]`, the active rows of the client matrix; `rate` is broadcastable to it (a column for a site, a
row for a tensor). State lives for one round at a site and starts at zero in the next: the server's mean is a point
that none of the old moments belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from fedfm.config import LocalConfig


class Optimizer(NamedTuple):
    """A pair of functions; `step` is told the number of the step, counted from 1: the rows' own, or each column's."""

    start: Callable[[Tensor], tuple[Tensor, ...]]
    step: Callable[[Tensor, Tensor, tuple[Tensor, ...], Tensor, int | Tensor], None]


def adamw(weight_decay: float = 0.0, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> Optimizer:
    """Loshchilov and Hutter, "Decoupled Weight Decay Regularization", 2019, https://arxiv.org/abs/1711.05101."""

    def start(theta: Tensor) -> tuple[Tensor, ...]:
        return torch.zeros_like(theta), torch.zeros_like(theta), torch.empty_like(theta)

    def step(theta: Tensor, grad: Tensor, state: tuple[Tensor, ...], rate: Tensor, t: int | Tensor) -> None:
        m, v, change = (rows[: len(theta)] for rows in state)
        if weight_decay:
            theta.mul_(1 - rate * weight_decay)
        m.lerp_(grad, 1 - beta1)
        v.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        # m / (1 - beta1^t) over sqrt(v) / c + eps, as c / (1 - beta1^t) times m over sqrt(v) + c eps: fewer operators.
        # Into memory that is there: for many rows, fresh pages at every step take longer than the arithmetic.
        c = (1 - beta2**t) ** 0.5
        torch.div(m, torch.sqrt(v, out=change).add_(c * eps), out=change)
        scale = c / (1 - beta1**t)
        if isinstance(t, Tensor):
            theta.sub_(change.mul_(rate * scale))
        else:
            theta.addcmul_(change, rate.expand_as(change), value=-scale)

    return Optimizer(start, step)


def sgd(momentum: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent with heavy-ball momentum as in torch, weight decay decoupled."""

    def start(theta: Tensor) -> tuple[Tensor, ...]:
        return (torch.zeros_like(theta),) if momentum else ()

    def step(theta: Tensor, grad: Tensor, state: tuple[Tensor, ...], rate: Tensor, t: int | Tensor) -> None:
        if weight_decay:
            theta.mul_(1 - rate * weight_decay)
        if momentum:
            velocity = state[0][: len(theta)]
            grad = velocity.mul_(momentum).add_(grad)
        theta.addcmul_(grad, rate, value=-1)

    return Optimizer(start, step)


def make_optimizer(local: LocalConfig) -> Optimizer:
    """The optimiser that [local] asks for."""
    if local.optimizer == "sgd":
        return sgd(local.momentum, local.weight_decay)
    return adamw(local.weight_decay)


def clip_rows(grad: Tensor, limit: float) -> None:
    """Scale every row whose Euclidean norm exceeds `limit` down to it, in place."""
    norms = grad.norm(dim=1, keepdim=True)
    grad.mul_((limit / norms.clamp_min(1e-12)).clamp_max(1.0))
