"""The local loop: K sites descend together, each on its own loss, each for its own number of steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from fedfm.profiling import phase
from fedfm.strategies.base import SiteRows
from fedfm.training.optimizers import Optimizer, clip_rows


class Correct(Protocol):
    """The site half of a strategy: the gradient that a site follows instead of its own, `[k, P]`."""

    def __call__(self, theta: Tensor, grad: Tensor, received: Tensor, rows: SiteRows) -> Tensor: ...


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
    rows: SiteRows | None = None,
    mask: Tensor | None = None,
    clip_norm: float = 0.0,
    schedule: str = "constant",
) -> None:
    """Run the local steps of K sites in place.

    theta, grad: the client matrix and its gradient `[K, P]`. `backward(t, k)` writes the gradient of step t (from 0) of
    the first k rows into those of `grad`. steps: number of steps of each row, largest first. rate: learning
    rate of each column `[P]`. rows: what `correct` sees of each site; without it theta is what was received. mask:
    True where something trains, `[P]` or `[K, P]`. A step is: gradient, correction, mask, clipping, optimiser.
    """
    if list(steps) != sorted(steps, reverse=True):
        raise ValueError(f"rows must stand in order of falling number of steps, got {list(steps)}")
    state = optimizer.start(theta)
    totals = torch.tensor(steps, dtype=theta.dtype, device=theta.device)[:, None]
    rows = rows or SiteRows(theta.clone() if correct is not None else theta)
    rows.steps, rows.rate = totals, rate
    trains = None if mask is None else mask.to(theta.dtype).expand_as(theta)
    for t in range(max(steps, default=0)):
        k = sum(t < count for count in steps)
        with torch.enable_grad():
            backward(t, k)
        own, direction = (theta, grad) if k == len(theta) else (theta[:k], grad[:k])  # mostly all: slices take time too
        if correct is not None:
            direction = correct(own, direction, rows.received[:k], rows_at(rows, t, k))
        factor = rate if schedule == "constant" else rate * schedule_factor(schedule, t, totals[:k])
        if trains is not None:  # also the rate: decay must not move what does not train
            direction, factor = direction * trains[:k], factor * trains[:k]
        if clip_norm:
            clip_rows(direction, clip_norm)
        optimizer.step(own, direction, state, factor, t + 1)


def rows_at(rows: SiteRows, step: int, k: int) -> SiteRows:
    """The first k rows at a step, as views."""
    kept = {name: value[:k] for name, value in rows.kept.items()}
    sent = {name: value[:k] for name, value in rows.sent.items()}
    return SiteRows(rows.received[:k], kept, sent, step, rows.steps[:k], rows.rate, rows.which)


def schedule_factor(schedule: str, t: int, totals: Tensor) -> Tensor | float:
    """What the learning rate is multiplied with at step t: 1, or half a cosine from 1 to 0 over each site's steps."""
    if schedule == "constant":
        return 1.0
    return 0.5 * (1 + torch.cos(math.pi * t / totals))
