"""A site's local work on a round: batches, losses, and the descent of one or several sites at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from fedfm.config import LocalConfig
from fedfm.models.features import IGNORED, Batch, Features, collate
from fedfm.profiling import phase
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

    def generator(self, purpose: str) -> np.random.Generator:
        """A generator that nothing but (seed, purpose, round, site) decides."""
        return keyed_generator(self.seed, purpose, self.round, self.site)


def keyed_generator(seed: int, purpose: str, round: int = 0, site: str = "") -> np.random.Generator:
    """The generator of one purpose in one round at one site; no draw of another can move it."""
    words = [seed, round, *f"{purpose}/{site}".encode()]
    # numpy takes a list apart number by number; an array of what that comes to is the same key in a third of the time
    return np.random.default_rng(np.array(words, np.uint32) if seed < 2**32 else words)


def fit(
    matrix: ClientMatrix, works: Sequence[SiteWork], local: LocalConfig, correct: Correct | None = None
) -> list[float]:
    """Train the sites whose weights lie in the first rows of `matrix`; returns the mean training loss of each.

    Rows must be loaded in the order of `works`; they are trained in order of falling number of steps and put back.
    """
    plans = [batch_plan(w.features.lengths(), local, w.generator("batches")) for w in works]
    order = sorted(range(len(works)), key=lambda i: -len(plans[i]))
    draws = [works[i].generator("augment") for i in order] if local.augment else []
    index = torch.tensor(order)
    matrix.theta[: len(order)] = matrix.theta[: len(order)][index]
    device, dtype = matrix.theta.device, matrix.theta.dtype
    losses = torch.zeros(len(order), dtype=torch.float64, device=device)

    def backward(step: int, active: int) -> None:
        rows = [(works[i].features, plans[i][step]) for i in order[:active]]
        is_image = rows[0][0].task == "image-classification"
        with phase("move"):
            batch = collate(rows, device, dtype, draws[:active] if is_image else ())
        matrix.model.active.rows = active
        with phase("forward"):
            per_site = site_losses(matrix.model(batch.inputs), batch, active)
        with phase("backward"):
            per_site.sum().backward()
        losses[:active] += per_site.detach()

    rate = torch.full_like(matrix.theta[0], local.head_learning_rate)
    rate[matrix.body_columns] = local.learning_rate
    rows = slice(len(order))
    descend(
        matrix.theta[rows], matrix.grad[rows], backward, [len(plans[i]) for i in order], rate,
        make_optimizer(local), correct, clip_norm=local.clip_norm, schedule=local.schedule,
    )  # fmt: skip
    back = torch.argsort(index)
    matrix.theta[rows] = matrix.theta[rows][back]
    means = losses.cpu() / torch.tensor([max(len(plans[i]), 1) for i in order])
    return means[back].tolist()


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
    flat = F.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), batch.labels.reshape(-1), reduction="none", ignore_index=IGNORED
    )
    return (flat * batch.weights.reshape(-1)).view(sites, -1).sum(dim=1)
