"""The local loop: K sites descend together, each on its own loss, each for its own number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedfm.profiling import phase
from fedfm.training.optimizers import Optimizer, clip_rows


class Correct(Protocol):
    """The site half of a strategy: the gradient that a site follows instead of its own, `[k, P]`."""

    def __call__(self, theta: Tensor, grad: Tensor, received: Tensor, site_state: Tensor | None) -> Tensor: ...


@torch.no_grad()
@phase("optimizer")
def descend(
    theta: Tensor,
    grad: Tensor,
    backward: Callable[[int, int], None],
    steps: Sequence[int],
    rate: Tensor,
    optimizer: Optimizer,
    correct: Correct | None = None,
    site_state: Tensor | None = None,
    clip_norm: float = 0.0,
    schedule: str = "constant",
) -> None:
    """Run the local steps of K sites in place.

    theta, grad: the client matrix and its gradient `[K, P]`. `backward(t, k)` adds the gradient of step t (from 0) of
    the first k rows to `grad`, which holds zeros. steps: number of steps of each row, largest first. rate: learning
    rate of each column `[P]`. A step is: gradient, the strategy's correction, clipping, optimiser.
    """
    if list(steps) != sorted(steps, reverse=True):
        raise ValueError(f"rows must stand in order of falling number of steps, got {list(steps)}")
    received = theta.clone()
    state = optimizer.start(theta)
    totals = torch.tensor(steps, dtype=theta.dtype, device=theta.device)[:, None]
    for t in range(max(steps, default=0)):
        k = sum(t < count for count in steps)
        grad[:k].zero_()
        with torch.enable_grad():
            backward(t, k)
        direction = grad[:k]
        if correct is not None:
            site = None if site_state is None else site_state[:k]
            direction = correct(theta[:k], direction, received[:k], site)
        if clip_norm:
            clip_rows(direction, clip_norm)
        optimizer.step(theta[:k], direction, state, rate * _factor(schedule, t, totals[:k]), t + 1)


def _factor(schedule: str, t: int, totals: Tensor) -> Tensor | float:
    """What the learning rate is multiplied with at step t: 1, or half a cosine from 1 to 0 over each site's steps."""
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + torch.cos(math.pi * t / totals))
