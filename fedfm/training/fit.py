"""A site's local work on a round: batches, losses, and the descent of one or several sites at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedfm.config import LocalConfig
from fedfm.models.features import IGNORED, Batch, Features, collate
from fedfm.profiling import phase
from fedfm.strategies.base import SiteRows
from fedfm.training.contrast import Contrast
from fedfm.training.descent import Correct, descend
from fedfm.training.matrix import ClientMatrix
from fedfm.training.optimizers import make_optimizer

BUCKET_BATCHES = 16


@dataclass(frozen=True)
class SiteWork:
    """One site's part in a round: its training split and the key of its random draws."""

    site: str
    features: Features
    seed: int
    round: int
    share: float = 1.0  # of its steps that it gets to: a straggler's part
    _ahead: list[tuple[LocalConfig, list[np.ndarray]]] = field(default_factory=list, repr=False, compare=False)

    def plan(self, local: LocalConfig, draws: str = "") -> list[np.ndarray]:
        """The index arrays of its steps; at least one where it has examples."""
        if self._ahead and not draws and self._ahead[0][0] is local:
            return self._ahead.pop()[1]
        plan = batch_plan(self.features.lengths(), local, self.generator(f"batches{draws}"))
        return plan[: local.steps(len(self.features), self.share)]

    def plan_ahead(self, local: LocalConfig) -> None:
        """Draw the next plan now. For sites that train one after the other: between two trainings, which push the code
        of the draws out of the caches, a plan takes many times as long as side by side with the other sites' plans."""
        self._ahead[:] = [(local, self.plan(local))]

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator that nothing but (seed, purpose, round, site) decides."""
        return keyed_generator(self.seed, purpose, self.round, self.site)


def keyed_generator(seed: int, purpose: str, round: int = 0, site: str = "") -> np.random.Generator:
    """The generator of one purpose in one round at one site; no draw of another can move it."""
    words = [seed, round, *f"{purpose}/{site}".encode()]
    # numpy takes a list apart number by number; an array of what that comes to is the same key in a third of the time
    return np.random.default_rng(np.array(words, np.uint32) if seed < 2**32 else words)


def fit(
    matrix: ClientMatrix,
    works: Sequence[SiteWork],
    local: LocalConfig,
    correct: Correct | None = None,
    rows: SiteRows | None = None,
    mask: Tensor | None = None,
    contrast: Contrast | None = None,
    draws: str = "",
) -> list[float]:
    """Train the sites whose weights lie in the first rows of `matrix`; returns the mean training loss of each.

    Rows (of the matrix, of `rows`, of `mask [P]` or `[K, P]`) stand in the order of `works`; they are trained in order
    of falling number of steps and put back. `contrast`: what a strategy adds to each site's loss. `draws`: another word
    gives other draws from the same keys, for a second descent in a round. Strategies' files say the rest.
    """
    plans = [work.plan(local, draws) for work in works]
    order = sorted(range(len(works)), key=lambda i: -len(plans[i]))
    if order == list(range(len(order))):  # as where one site trains alone: no row needs a copy
        return _fit_in_order(matrix, works, plans, local, correct, rows, mask, contrast, draws)
    index, part = torch.tensor(order), slice(len(order))
    back = torch.argsort(index)
    matrix.theta[part] = matrix.theta[part][index]
    inside = None if rows is None else _taken(rows, index)
    mask = mask[index] if mask is not None and mask.dim() == 2 else mask
    works, plans = [works[i] for i in order], [plans[i] for i in order]
    means = _fit_in_order(matrix, works, plans, local, correct, inside, mask, contrast, draws)
    matrix.theta[part] = matrix.theta[part][back]
    if rows is not None:
        _put_back(rows, inside, back)
    return [means[place] for place in back.tolist()]


def _fit_in_order(
    matrix: ClientMatrix, works: Sequence[SiteWork], plans: Sequence[list[np.ndarray]], local: LocalConfig,
    correct: Correct | None, rows: SiteRows | None, mask: Tensor | None, contrast: Contrast | None, draws: str,
) -> list[float]:  # fmt: skip
    """`fit` of sites whose rows stand in order of falling number of steps."""
    part, steps = slice(len(works)), [len(plan) for plan in plans]
    losses: list[Tensor] = []  # of each step
    augments = [work.generator(f"augment{draws}") for work in works] if local.augment else []
    backward = _backward(matrix, works, plans, losses, augments, contrast, rows)
    rate = matrix.rates(local.learning_rate, local.head_learning_rate)
    descend(
        matrix.theta[part], matrix.grad[part], backward, steps, rate, make_optimizer(local),
        correct, rows, mask, clip_norm=local.clip_norm, schedule=local.schedule,
    )  # fmt: skip
    matrix.activate(matrix.rows)
    return _means(losses, steps)


def _means(losses: Sequence[Tensor], steps: Sequence[int]) -> list[float]:
    """The mean loss of each row over its steps, in float64; at each step the first rows took part.

    Not added up as they come: that is three operators at every step, and this is one at the end.
    """
    sums = [0.0] * len(steps)
    values = iter(torch.cat(list(losses)).tolist() if losses else ())
    for part in losses:
        for row in range(part.numel()):
            sums[row] += next(values)
    return [total / max(count, 1) for total, count in zip(sums, steps, strict=True)]


def _backward(
    matrix: ClientMatrix, works: Sequence[SiteWork], plans: Sequence[list[np.ndarray]],
    losses: list[Tensor], augments: Sequence[np.random.Generator], contrast: Contrast | None, rows: SiteRows | None,
) -> Callable[[int, int], None]:  # fmt: skip
    """What `descend` calls at each step: the losses of the first rows, which `losses` is given, and their gradients."""
    device, dtype = matrix.theta.device, matrix.theta.dtype

    def backward(step: int, active: int) -> None:
        splits = [(work.features, plan[step]) for work, plan in zip(works[:active], plans, strict=False)]
        is_image = splits[0][0].task == "image-classification"
        with phase("move"):
            batch = collate(splits, device, dtype, augments[:active] if is_image else ())
        matrix.activate(active)
        with phase("forward"):
            if contrast:
                contrast.look(batch, rows, active)
            per_site = site_losses(matrix.model(batch.inputs), batch, active)
            total = per_site + contrast.loss(batch, active) if contrast else per_site
        with phase("backward"):
            matrix.differentiate(total, active)
        losses.append(per_site.detach())

    return backward


def _taken(rows: SiteRows, index: Tensor) -> SiteRows:
    kept = {name: value[index] for name, value in rows.kept.items()}
    sent = {name: value[index] for name, value in rows.sent.items()}
    return SiteRows(rows.received[index], kept, sent, which=rows.which)


def _put_back(rows: SiteRows, inside: SiteRows, back: Tensor) -> None:
    """What the steps changed of what sites keep, in the caller's order."""
    rows.kept |= {name: value[back] for name, value in inside.kept.items()}
    rows.steps, rows.rate = inside.steps[back], inside.rate


def batch_plan(lengths: np.ndarray, local: LocalConfig, draw: np.random.Generator) -> list[np.ndarray]:
    """The index arrays of a site's steps: `epochs` passes over its examples, each in a new order, no example dropped.

    `lengths`: tokens of each example, int64 [N]. With `length-buckets` the order is sorted by length inside stretches
    of sixteen batches, so that a batch pads little, and the batches then come in random order.
    """
    plan: list[np.ndarray] = []
    size = local.batch_size
    for _ in range(local.epochs):
        order = draw.permutation(len(lengths))
        if local.length_buckets:
            stretch = BUCKET_BATCHES * size
            parts = (order[start : start + stretch] for start in range(0, len(order), stretch))
            order = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in parts])
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        if local.length_buckets:
            batches = [batches[i] for i in draw.permutation(len(batches))]
        plan += batches
    return plan


def site_losses(logits: torch.Tensor, batch: Batch, sites: int) -> torch.Tensor:
    """Mean cross-entropy of each site's own examples (or scored tokens), `[K]`."""
    if batch.weights is None:
        if sites == 1:
            return F.cross_entropy(logits, batch.labels)[None]
        return F.cross_entropy(logits, batch.labels, reduction="none").view(sites, -1).mean(dim=1)
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), batch.labels.reshape(-1), reduction="none", ignore_index=IGNORED
    )
    return (flat * batch.weights.reshape(-1)).view(sites, -1).sum(dim=1)
