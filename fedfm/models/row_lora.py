"""LoRA for many sites at once: the frozen layer between them is one, the low-rank updates are rows.

Shape letters: k sites, B examples of a site, S tokens, H features, r rank.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

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

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base.weight if self.merged is None else self.merged
        factors = [self.row(name) for name in self.shapes]
        if not torch.is_autocast_enabled(x.device.type):
            return _LowRank.apply(x, weight, self.base.bias, self.scale, *factors)
        y = F.linear(x, weight, self.base.bias)  # autocast knows torch's operators, and none of ours
        wide, total = x.reshape(self.k, -1, x.shape[-1]), y.view(self.k, -1, y.shape[-1])
        for a, b in zip(factors[::2], factors[1::2], strict=True):
            low = torch.bmm(wide, a.transpose(1, 2))
            total = torch.baddbmm(total, low, b.transpose(1, 2), alpha=self.scale)
        return total.view(y.shape)

    def merge(self, product: Tensor | None) -> None:
        """Compute with W0 + (alpha / r) `product [out, in]` from now on; with W0 itself where there is none."""
        own = self.base.weight
        self.merged = None if product is None else (own.double() + self.scale * product.to(own.device)).to(own.dtype)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        shape = self.shapes[attribute]
        if attribute.endswith("_B"):
            return torch.zeros(shape)
        bound = 1 / math.sqrt(shape[1])  # kaiming_uniform_ with a = sqrt(5)
        return (torch.rand(shape, generator=generator) * 2 - 1) * bound


class _LowRank(torch.autograd.Function):
    """`y = x W0^T + b0 + scale * sum_i (x A_i^T) B_i^T`, rows of a site adjacent, and its gradients as one node.

    Written out, because torch's own takes twice the operators: it scales where a product could have scaled, and adds
    what one product could have added to another. factors: A_1 `[k, r, in]`, B_1 `[k, out, r]`, A_2, B_2, ...

        g = dy B    dx = dy W0 + scale * g A    dA = scale * g^T x    dB = scale * dy^T (x A^T)
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, scale: float, *factors: Tensor) -> Tensor:
        y = F.linear(x, weight, bias)
        k = factors[0].shape[0]
        wide, total = x.reshape(k, -1, x.shape[-1]), y.view(k, -1, y.shape[-1])
        lows = []
        for a, b in zip(factors[::2], factors[1::2], strict=True):
            lows.append(torch.bmm(wide, a.transpose(1, 2)))
            total.baddbmm_(lows[-1], b.transpose(1, 2), alpha=scale)
        ctx.save_for_backward(weight, wide, *factors, *lows)
        ctx.scale, ctx.shape = scale, x.shape
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, wide, *rest = ctx.saved_tensors
        factors, lows = rest[: 2 * len(rest) // 3], rest[2 * len(rest) // 3 :]
        change = dy.reshape(wide.shape[0], -1, dy.shape[-1])
        dx = torch.mm(change.view(-1, dy.shape[-1]), weight).view_as(wide) if ctx.needs_input_grad[0] else None
        gradients = []
        for a, b, low in zip(factors[::2], factors[1::2], lows, strict=True):
            g = torch.bmm(change, b)
            gradients += [_scaled(ctx.scale, g, wide), _scaled(ctx.scale, change, low)]
            if dx is not None:
                dx.baddbmm_(g, a, alpha=ctx.scale)
        return None if dx is None else dx.view(ctx.shape), None, None, None, *gradients


def _scaled(scale: float, a: Tensor, b: Tensor) -> Tensor:
    """`scale * a^T b` of each row, one operator."""
    return torch.baddbmm(_nothing(a.dtype, a.device), a.transpose(1, 2), b, beta=0, alpha=scale)


@lru_cache
def _nothing(dtype: torch.dtype, device: torch.device) -> Tensor:
    """What a product is added to, times 0."""
    return torch.zeros((), dtype=dtype, device=device)
