"""A layer of BERT whose own weights stay as they are, as two nodes of the graph: before its attention and after it.

Nothing but the input and LoRA's factors needs a gradient there, and those are written out: torch's own graph of the
same layer has thirty nodes, of which each costs more than its arithmetic where a batch is small.

Shape letters: N examples, S tokens, H features, h heads of d features, T = N S.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from fedfm.models.row_lora import Linear, RowLoRA

aten = torch.ops.aten


class FrozenLayer:
    """The forward pass of one layer, where all of its linear layers and norms are frozen ones.

        a = LayerNorm_1(W_o attention(W_q x, W_k x, W_v x) + x)        y = LayerNorm_2(W_2 gelu(W_1 a) + a)

    With weights in bfloat16 (`is_half`) all is as under autocast: products, attention, GELU in bfloat16, and on a GPU
    norms, the sums before them and `y` in float32. What autocast casts at each use is cast once.
    """

    def __init__(self, layer: nn.Module):
        linears, norms = _parts(layer)
        self.head, self.scaling = layer.attention.self.attention_head_size, layer.attention.self.scaling
        self.inward = [_computed(module) for module in linears[:3]]
        self.outward = [_computed(module) for module in linears[3:]]
        self.is_half = norms[0].weight.dtype == torch.bfloat16
        self.modules, self.norms = norms, [Norm.of(module) for module in norms]

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Is nothing but LoRA's factors trained in `layer`, one of BERT's architecture, and its activation GELU?"""
        linears, norms = _parts(layer)
        return (
            all(type(module) in (nn.Linear, RowLoRA) for module in linears)
            and all(type(module) is nn.LayerNorm for module in norms)
            and type(layer.intermediate.intermediate_act_fn) is GELUActivation
            and not any(value.requires_grad for value in layer.parameters())
        )

    def __call__(self, hidden: Tensor, mask: Tensor | None = None, *_: None, **__: None) -> Tensor:
        """hidden `[N, S, H]`, mask as `scaled_dot_product_attention` takes it -> `[N, S, H]`."""
        inward = [module if type(module) is Linear else module.linear() for module in self.inward]
        outward = [module if type(module) is Linear else module.linear() for module in self.outward]
        trained, trained_after = ([f for linear in linears for f in linear.factors()] for linears in (inward, outward))
        if self.is_half:
            inward, outward = ([linear.in_its_type() for linear in linears] for linears in (inward, outward))
            self._fit_norms(hidden.device)
        heads = _Project.apply(hidden, self.head, inward, *trained)
        seen = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=self.scaling)
        return _Finish.apply(seen, hidden, outward, self.norms, *trained_after)

    def _fit_norms(self, device: torch.device) -> None:
        """Copies of the norms' weights in another type do not move with the model."""
        weight, wanted = self.norms[0].weight, norm_type(device)
        if weight.dtype != wanted or weight.device != device:
            self.norms = [Norm.of(module, wanted) for module in self.modules]


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


class _Project(torch.autograd.Function):
    """Queries, keys and values `[N, h, S, d]` of `hidden [N, S, H]`; head: d."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: int, linears: Sequence[Linear], *factors: Tensor) -> tuple[Tensor, ...]:
        n, s, h = hidden.shape
        x, outputs, lows = _as(hidden.reshape(n * s, h), linears[0].weight), [], []
        for linear in linears:
            y, low = linear.forward(x)
            outputs.append(y.view(n, s, -1, head).transpose(1, 2))
            lows += low
        ctx.save_for_backward(x if any(linear.pairs for linear in linears) else None, *lows)
        ctx.linears, ctx.shape = linears, hidden.shape
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *changes: Tensor) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        (n, s, _), dx, gradients = ctx.shape, None, []
        for linear, change in zip(ctx.linears, changes, strict=True):
            dy = change.transpose(1, 2).reshape(n * s, -1)
            found, backs = linear.to_factors(dy, x, _taken(lows, linear))
            gradients += found
            if ctx.needs_input_grad[0]:
                dx = linear.to_input(dy, backs, dx)
        return None if dx is None else dx.view(ctx.shape), None, None, *gradients


class _Finish(torch.autograd.Function):
    """What follows on attention: `seen [N, h, S, d]` and the layer's input `hidden [N, S, H]` -> `[N, S, H]`."""

    @staticmethod
    def forward(
        ctx, seen: Tensor, hidden: Tensor, linears: Sequence[Linear], norms: Sequence[Norm], *factors: Tensor
    ) -> Tensor:
        (out, inner, outer), (first, second) = linears, norms
        n, s, h = hidden.shape
        x = seen.transpose(1, 2).reshape(n * s, -1)
        attended, low_out = out.forward(x)
        attended = _sum(attended, hidden.reshape(n * s, h), first)
        a, *of_first = first.forward(attended)
        cast = _as(a, inner.weight)
        wide, low_inner = inner.forward(cast)
        active = F.gelu(wide)
        total, low_outer = outer.forward(active)
        total = _sum(total, a, second)
        y, *of_second = second.forward(total)
        kept = [value if linear.pairs else None for linear, value in zip(linears, (x, cast, active), strict=True)]
        lows = (*low_outer, *low_inner, *low_out)
        ctx.save_for_backward(*kept, attended, *of_first, wide, total, *of_second, *lows)
        ctx.linears, ctx.norms, ctx.shapes = linears, norms, (seen.shape, hidden.shape)
        return y.view(n, s, h)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, a, active, attended, mean_1, inverse_1, wide, total, mean_2, inverse_2, *lows = ctx.saved_tensors
        (out, inner, outer), (first, second) = ctx.linears, ctx.norms
        change = second.to_input(dy.reshape(total.shape), total, mean_2, inverse_2)
        cast = _as(change, wide)
        of_outer, backs = outer.to_factors(cast, active, _taken(lows, outer))
        narrow = aten.gelu_backward(outer.to_input(cast, backs), wide)
        of_inner, backs = inner.to_factors(narrow, a, _taken(lows, inner))
        change = first.to_input(inner.to_input(narrow, backs, change), attended, mean_1, inverse_1)
        cast = _as(change, wide)
        of_out, backs = out.to_factors(cast, x, _taken(lows, out))
        (n, h, s, d), shape = ctx.shapes
        d_seen = out.to_input(cast, backs).view(n, s, h, d).transpose(1, 2)
        return d_seen, change.view(shape), None, None, *of_out, *of_inner, *of_outer


def _parts(layer: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """W_q, W_k, W_v, W_o, W_1, W_2; LayerNorm_1, LayerNorm_2."""
    own, attended, inner, outer = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    linears = [own.query, own.key, own.value, attended.dense, inner.dense, outer.dense]
    return linears, [attended.LayerNorm, outer.LayerNorm]


def _computed(module: nn.Module) -> Linear | RowLoRA:
    """What does not change as such; LoRA, whose factors and weight do, as it is."""
    return module if type(module) is RowLoRA else Linear(module.weight, module.bias)


def _as(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the type of `like`."""
    return x if x.dtype == like.dtype else x.to(like.dtype)


def _sum(product: Tensor, x: Tensor, norm: Norm) -> Tensor:
    """`product + x` in the type of the norm that follows; in place where the product is of that type."""
    return product.add_(x) if product.dtype == norm.weight.dtype else (product + x).to(norm.weight.dtype)


def norm_type(device: torch.device) -> torch.dtype:
    """In which autocast computes the norms of a body in bfloat16."""
    return torch.float32 if device.type == "cuda" else torch.bfloat16


def _taken(lows: list[Tensor], linear: Linear) -> list[Tensor]:
    """The first of `lows`, those of `linear`, which are taken out of it."""
    count = len(linear.pairs)
    own, lows[:count] = lows[:count], []
    return own
