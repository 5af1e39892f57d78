"""The parts of a frozen layer of BERT, each a forward pass and its written-out gradient; what they compose is in
`frozen_layer`.

A forward function gives what it computes and a list of tensors that the gradient wants; its gradient takes them back.

Shape letters: H features, T tokens of all texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfm.models.row_lora import Linear

aten = torch.ops.aten


class Norm(NamedTuple):
    """A frozen LayerNorm."""

    width: list[int]
    weight: Tensor
    bias: Tensor | None
    eps: float

    @classmethod
    def of(cls, module: nn.LayerNorm, dtype: torch.dtype | None = None) -> Norm:
        """That of a module; its weights as copies of another type, if one is given."""
        weight, bias = module.weight, module.bias
        if dtype is not None:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        return cls(list(module.normalized_shape), weight, bias, module.eps)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`y [T, H]` of `x [T, H]`, and the mean and the inverse deviation that its gradient wants, `[T, 1]`."""
        return torch.native_layer_norm(x, *self)

    def to_input(self, dy: Tensor, x: Tensor, mean: Tensor, inverse: Tensor) -> Tensor:
        """The gradient of the input, `[T, H]`."""
        wanted = [True, False, False]
        return aten.native_layer_norm_backward(dy, x, self.width, mean, inverse, self.weight, self.bias, wanted)[0]


# ---- queries, keys and values ----------------------------------------------------------------------------------------


def project(x: Tensor, linears: Sequence[Linear]) -> tuple[list[Tensor], list[Tensor]]:
    """What each linear layer makes of `x [T, H]`."""
    outputs, lows = [], []
    for linear in linears:
        y, low = linear.forward(x)
        outputs.append(y)
        lows += low
    return outputs, lows


def project_back(
    changes: Sequence[Tensor], x: Tensor | None, lows: Sequence[Tensor], linears: Sequence[Linear], wanted: bool,
    onto: Tensor | None = None,
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    """The gradients of `x`, where it is wanted, added to `onto` in place where that is given, and of the factors."""
    dx, lows, gradients = onto if wanted else None, list(lows), []
    for linear, dy in zip(linears, changes, strict=True):
        found, backs = linear.to_factors(dy, x, taken(lows, linear))
        gradients += found
        if wanted:
            dx = linear.to_input(dy, backs, dx)
    return dx, gradients


# ---- what follows on attention ---------------------------------------------------------------------------------------


def finish(
    x: Tensor, hidden: Tensor, linears: Sequence[Linear], norms: Sequence[Norm]
) -> tuple[Tensor, list[Tensor | None]]:
    """`a = LayerNorm_1(W_o x + hidden)`, `y = LayerNorm_2(W_2 gelu(W_1 a) + a)`, all `[T, H]`."""
    (out, inner, outer), (first, second) = linears, norms
    attended, low_out = out.forward(x)
    attended = _sum(attended, hidden, first)
    a, *of_first = first.forward(attended)
    cast = as_type_of(inner.weight, a)
    wide, low_inner = inner.forward(cast)
    active = F.gelu(wide)
    total, low_outer = outer.forward(active)
    total = _sum(total, a, second)
    y, *of_second = second.forward(total)
    inputs = [value if linear.pairs else None for linear, value in zip(linears, (x, cast, active), strict=True)]
    return y, [*inputs, attended, *of_first, wide, total, *of_second, *low_outer, *low_inner, *low_out]


def finish_back(
    dy: Tensor, kept: Sequence[Tensor | None], linears: Sequence[Linear], norms: Sequence[Norm]
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The gradients of `x`, of `hidden` and of the factors."""
    x, a, active, attended, mean_1, inverse_1, wide, total, mean_2, inverse_2, *lows = kept
    (out, inner, outer), (first, second) = linears, norms
    change = second.to_input(dy.reshape(total.shape), total, mean_2, inverse_2)
    cast = as_type_of(wide, change)
    of_outer, backs = outer.to_factors(cast, active, taken(lows, outer))
    narrow = aten.gelu_backward(outer.to_input(cast, backs), wide)
    of_inner, backs = inner.to_factors(narrow, a, taken(lows, inner))
    change = first.to_input(inner.to_input(narrow, backs, change), attended, mean_1, inverse_1)
    cast = as_type_of(wide, change)
    of_out, backs = out.to_factors(cast, x, taken(lows, out))
    return out.to_input(cast, backs), change, [*of_out, *of_inner, *of_outer]


def _sum(product: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """`product + x` in the type of the norm that follows; in place where the product is of that type."""
    return product.add_(x) if product.dtype == norm.weight.dtype else (product + x).to(norm.weight.dtype)


def as_type_of(like: Tensor, x: Tensor) -> Tensor:
    """`x` in the type of `like`."""
    return x if x.dtype == like.dtype else x.to(like.dtype)


def taken(lows: list[Tensor], linear: Linear) -> list[Tensor]:
    """The first of `lows`, those of `linear`, which are taken out of it."""
    count = len(linear.pairs)
    own, lows[:count] = lows[:count], []
    return own
