"""LoRA for many sites at once: the frozen layer between them is one, the low-rank updates are rows.

Shape letters: k sites, T rows of the input (a site's adjacent), H features in, O features out, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedfm.models.devices import widest
from fedfm.models.rows import Active, RowModule


class RowLoRA(RowModule):
    """A frozen linear layer plus a low-rank update for each site: `y = W0 x + b0 + (alpha / r) B A x`.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, https://arxiv.org/abs/2106.09685.
    With `domain_rank` there is a second pair, `domain_A` and `domain_B`, that adds to the first at the same scale.
    A starts as Kaiming-uniform, B as zero (as in peft), so that the start is the body itself.
    """

    def __init__(self, active: Active, base: nn.Linear, rank: int, alpha: float, domain_rank: int = 0):
        shapes = {"lora_A": (rank, base.in_features), "lora_B": (base.out_features, rank)}
        if domain_rank:
            shapes |= {"domain_A": (domain_rank, base.in_features), "domain_B": (base.out_features, domain_rank)}
        super().__init__(active, shapes)
        self.base, self.scale = base, alpha / rank
        self.merged: Tensor | None = None  # in place of the frozen weight
        self._linear: tuple[int, Linear] | None = None

    def forward(self, x: Tensor) -> Tensor:
        linear = self.linear()
        if not torch.is_autocast_enabled(x.device.type):
            return _LowRank.apply(x, linear, *linear.factors())
        y = F.linear(x, linear.weight, linear.bias)  # autocast knows torch's operators, and none of ours
        wide, total = x.reshape(self.k, -1, x.shape[-1]), y.view(self.k, -1, y.shape[-1])
        for a, b, *_ in linear.pairs:
            low = torch.bmm(wide, a.transpose(1, 2))
            total = torch.baddbmm(total, low, b.transpose(1, 2), alpha=self.scale)
        return total.view(y.shape)

    def linear(self) -> Linear:
        """What it computes with at present. Made anew only where that has changed: a step asks at every layer, and
        past torch's lookup of attributes."""
        weight = self._modules["base"]._parameters["weight"] if self.merged is None else self.merged
        if self._linear is None or self._linear[0] != self.k or self._linear[1].weight is not weight:
            factors = [self.row(name) for name in self.shapes]
            pairs = tuple(Pair.of(*pair) for pair in zip(factors[::2], factors[1::2], strict=True))
            self._linear = self.k, Linear(weight, self.base.bias, self.scale, pairs)
        return self._linear[1]

    def bind(self, attribute: str, rows: Tensor) -> nn.Parameter:
        self._linear = None
        return super().bind(attribute, rows)

    def rebind(self, attribute: str, parameter: nn.Parameter) -> None:
        self._linear = None
        super().rebind(attribute, parameter)

    def merge(self, product: Tensor | None) -> None:
        """Compute with W0 + (alpha / r) `product [out, in]` from now on; with W0 itself where there is none."""
        own, self.merged = self.base.weight, None
        if product is not None:
            wide = widest(own.device)
            self.merged = (own.to(wide) + self.scale * product.to(own.device, wide)).to(own.dtype)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        shape = self.shapes[attribute]
        if attribute.endswith("_B"):
            return torch.zeros(shape)
        bound = 1 / math.sqrt(shape[1])  # kaiming_uniform_ with a = sqrt(5)
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound


class Pair(NamedTuple):
    """The factors A `[k, r, H]` and B `[k, O, r]` of an update, and both turned, for which no step has to ask again."""

    a: Tensor
    b: Tensor
    a_turned: Tensor
    b_turned: Tensor

    @classmethod
    def of(cls, a: Tensor, b: Tensor) -> Pair:
        return cls(a, b, a.detach().transpose(1, 2), b.detach().transpose(1, 2))


class Linear(NamedTuple):
    """A frozen linear layer `W0 [O, H]`, `b0 [O]`, and the low-rank update on it, if any: pairs (A_i, B_i) and a scale.

    What is computed, and its gradients, without a graph:

        y = x W0^T + b0 + scale * sum_i (x A_i^T) B_i^T        dx = dy W0 + scale * sum_i (dy B_i) A_i
        dA_i = scale * (dy B_i)^T x                            dB_i = scale * dy^T (x A_i^T)

    What is r wide is computed turned: a CPU's products go along the second side of what they make, and are slow where
    that is a short one. Only the `y` of one site is computed as peft does, to the digit.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float = 1.0
    pairs: tuple[Pair, ...] = ()

    def factors(self) -> list[Tensor]:
        """A_1, B_1, A_2, B_2, ..."""
        return [factor for pair in self.pairs for factor in pair[:2]]

    def in_its_type(self) -> Linear:
        """With factors in the type of the weight."""
        to = self.weight.dtype
        return self._replace(pairs=tuple(Pair.of(p.a.to(to), p.b.to(to)) for p in self.pairs)) if self.pairs else self

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`y [T, O]` of `x [T, H]`, and `x A_i^T [k, T / k, r]`, which the gradients want."""
        y, lows = F.linear(x, self.weight, self.bias), []
        for a, b, a_turned, b_turned in self.pairs:
            wide = _of_sites(x, a)
            is_one = len(wide) == 1
            lows.append(torch.bmm(wide, a_turned) if is_one else torch.bmm(a, wide.transpose(1, 2)).transpose(1, 2))
            _of_sites(y, b).baddbmm_(lows[-1], b_turned, alpha=self.scale)
        return y, lows

    def to_factors(self, dy: Tensor, x: Tensor, lows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The gradients of the factors, and `B_i^T dy^T [k, r, T / k]`, which that of the input wants."""
        gradients, backs = [], []
        for (_, b, _, b_turned), low in zip(self.pairs, lows, strict=True):
            change = _of_sites(dy, b)
            backs.append(torch.bmm(b_turned, change.transpose(1, 2)))
            gradients += [
                scaled(self.scale, backs[-1], _of_sites(x, b)),
                scaled(self.scale, low.transpose(1, 2), change).transpose(1, 2),
            ]
        return gradients, backs

    def to_input(self, dy: Tensor, backs: Sequence[Tensor], onto: Tensor | None = None) -> Tensor:
        """The gradient of the input, `[T, H]`, added to `onto` in place where that is given."""
        if onto is not None and onto.dtype != dy.dtype:
            return onto.add_(self.to_input(dy, backs))
        dx = torch.mm(dy, self.weight) if onto is None else onto.addmm_(dy, self.weight)
        for (a, *_), back in zip(self.pairs, backs, strict=True):
            _of_sites(dx, a).baddbmm_(back.transpose(1, 2), a, alpha=self.scale)
        return dx


class _LowRank(torch.autograd.Function):
    """A `Linear` as one node of the graph.

    Written out, because torch's own takes twice the operators: it scales where a product could have scaled, and adds
    what one product could have added to another.
    """

    @staticmethod
    def forward(ctx, x: Tensor, linear: Linear, *factors: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        y, lows = linear.forward(flat)
        ctx.save_for_backward(flat, *lows)
        ctx.linear, ctx.shape = linear, x.shape
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        dy = dy.reshape(-1, dy.shape[-1])
        gradients, backs = ctx.linear.to_factors(dy, x, lows)
        dx = ctx.linear.to_input(dy, backs).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return dx, None, *gradients


def _of_sites(x: Tensor, rows: Tensor) -> Tensor:
    """`x [T, H]` as `[k, T / k, H]`, for the k of `rows`."""
    return x.view(rows.shape[0], -1, x.shape[1])


def scaled(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """`scale * a b` of each row, one operator."""
    return torch.baddbmm(_nothing(a.dtype, a.device), a, b, beta=0, alpha=scale)


@lru_cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a product is added to, times 0."""
    return torch.zeros((), dtype=dtype, device=device)
