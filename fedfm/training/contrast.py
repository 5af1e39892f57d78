"""A term of the loss on what a model makes of examples before its head, beside what other weights make of them."""

from __future__ import annotations

import torch
from torch import Tensor

from fedfm.models.features import Batch
from fedfm.strategies.base import SiteRows, Strategy
from fedfm.training.matrix import ClientMatrix


class Contrast:
    """A strategy's `pull` on the vectors that enter the head; inside a `with`, because it listens at the head."""

    def __init__(self, strategy: Strategy, matrix: ClientMatrix):
        self.strategy, self.matrix = strategy, matrix
        self._entered: list[Tensor] = []
        self._others: dict[str, Tensor] = {}

    def __enter__(self) -> Contrast:
        self._hook = self.matrix.model.head.register_forward_pre_hook(self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _hear(self, head: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._entered.append(inputs[0])

    @torch.no_grad()
    def look(self, batch: Batch, rows: SiteRows, active: int) -> None:
        """Pass the batch through the strategy's `views`, before the step's own forward pass.

        All weights go through the one matrix, so that nothing of that pass may have been kept for gradients yet.
        """
        theta = self.matrix.theta[:active]
        own = theta.clone()
        for view in self.strategy.views:
            theta.copy_((rows.received if view == "received" else rows.kept[view])[:active])
            self.matrix.model(batch.inputs)
            self._others[view] = _vectors(self._entered.pop(), batch)
        theta.copy_(own)

    def loss(self, batch: Batch, active: int) -> Tensor:
        """The term of each site `[k]`, after the forward pass: its examples count as in the site's own loss."""
        found = self.strategy.pull(_vectors(self._entered.pop(), batch), self._others)
        if batch.weights is None:
            return found.view(active, -1).mean(dim=1)
        return (found * batch.weights.reshape(len(found), -1).sum(dim=1)).view(active, -1).sum(dim=1)


def _vectors(states: Tensor, batch: Batch) -> Tensor:
    """One vector for each example `[N, H]`: of token states the mean over the example's tokens."""
    if states.dim() == 2:
        return states
    mask = batch.inputs.get("attention_mask")
    if mask is None:
        return states.mean(dim=1)
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)
