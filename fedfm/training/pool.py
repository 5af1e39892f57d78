"""Training on pooled data: the examples of several sites as one set, the domains' steps in turn where they share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedfm.config import LocalConfig
from fedfm.models.devices import widest
from fedfm.models.features import collate, join
from fedfm.profiling import phase
from fedfm.training.descent import schedule_factor
from fedfm.training.fit import SiteWork, site_losses
from fedfm.training.matrix import ClientMatrix
from fedfm.training.optimizers import clip_rows, make_optimizer


@dataclass
class Pool:
    """One domain's part: its sites' works, the model (row 0 of `matrix`), and the columns that all domains share.

    shared: indices of columns `[S]`, those of the same tensors in the same order in every domain.
    """

    domain: str
    works: Sequence[SiteWork]
    matrix: ClientMatrix
    local: LocalConfig
    shared: Tensor

    def plan(self) -> list[np.ndarray]:
        """The index arrays of its steps, as many as its sites would take: indices into `features`.

        In every epoch the pooled examples are drawn in a new order and cut into batches of nearly one size.
        """
        own = self.works[0]
        draw = SiteWork(self.domain, own.features, own.seed, own.round).generator("pool")
        sizes = [len(work.features) for work in self.works]
        batches = sum(-(-size // self.local.batch_size) for size in sizes)
        plan: list[np.ndarray] = []
        for _ in range(self.local.epochs if batches else 0):
            plan += np.array_split(draw.permutation(sum(sizes)), batches)
        return plan[: sum(self.steps())]  # fewer where stragglers among the sites take fewer

    def steps(self) -> list[int]:
        """Steps that each site would take."""
        return [self.local.steps(len(work.features), work.share) for work in self.works]


def fit_pools(pools: Sequence[Pool]) -> list[float]:
    """Train row 0 of every pool's matrix in place; returns the mean training loss of each.

    A step of one domain after a step of another, evenly spread. With several pools the shared columns, and what the
    optimiser holds of them, go from each step to the next, whichever domain takes it; their number of steps counts
    all, that of a domain's own columns its own.
    """
    turns = [_Turns(pool) for pool in pools]
    order = sorted(
        ((step + 0.5) / len(turn.plan), number, step)
        for number, turn in enumerate(turns)
        for step in range(len(turn.plan))
    )
    last: _Turns | None = None
    for _, number, step in order:
        turn = turns[number]
        if last is not None and last is not turn:
            turn.take_over(last)
        turn.step(step)
        last = turn
    for turn in turns:
        if last is not None and turn is not last:
            turn.take_over(last)
    return [turn.loss / max(len(turn.plan), 1) for turn in turns]


class _Turns:
    """The steps of one domain."""

    def __init__(self, pool: Pool):
        self.pool, self.plan, self.loss = pool, pool.plan(), 0.0
        self.features = join([work.features for work in pool.works])
        self.theta, self.grad = pool.matrix.theta[:1], pool.matrix.grad[:1]
        self.optimizer = make_optimizer(pool.local)
        self.state = self.optimizer.start(self.theta)
        self.count = torch.zeros_like(self.theta, dtype=widest(self.theta.device))  # steps that each column has seen
        self.rate = torch.full_like(self.theta, pool.local.head_learning_rate)
        self.rate[:, pool.matrix.body_columns] = pool.local.learning_rate
        own = pool.works[0]
        keyed = SiteWork(pool.domain, own.features, own.seed, own.round)
        self.draws = [keyed.generator("augment")] if pool.local.augment else []

    @torch.no_grad()
    def take_over(self, other: _Turns) -> None:
        """The shared columns as the other domain has left them."""
        mine, theirs = self.pool.shared, other.pool.shared
        for here, there in zip(
            (self.theta, self.count, *self.state), (other.theta, other.count, *other.state), strict=True
        ):
            here[:, mine] = there[:, theirs]

    @torch.no_grad()
    def step(self, number: int) -> None:
        model, local = self.pool.matrix.model, self.pool.local
        draws = self.draws if self.features.task == "image-classification" else []
        self.pool.matrix.activate(1)
        with torch.enable_grad():
            with phase("move"):
                batch = collate([(self.features, self.plan[number])], self.theta.device, self.theta.dtype, draws)
            with phase("forward"):
                loss = site_losses(model(batch.inputs), batch, 1)
            with phase("backward"):
                self.pool.matrix.differentiate(loss, 1)
        self.loss += float(loss.detach())
        if local.clip_norm:
            clip_rows(self.grad, local.clip_norm)
        self.count += 1
        total = torch.full_like(self.theta[:, :1], len(self.plan))
        rate = self.rate * schedule_factor(local.schedule, number, total)
        with phase("optimizer"):
            self.optimizer.step(self.theta, self.grad, self.state, rate, self.count.to(self.theta.dtype))
