"""Layers of BERT whose own weights stay as they are, all of them as one node of the graph.

Nothing but the input and LoRA's factors needs a gradient there, and those are written out (`frozen_parts`): torch's own
graph of one layer has thirty nodes, of which each costs more than its arithmetic where a batch is small. On a GPU, and
in bfloat16, torch is to choose the kernel of attention, and a layer is two nodes: before attention and after it.

Shape letters: N examples, S tokens, H features, h heads of d features, T = N S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.activations import GELUActivation

from fedfm.models.attention import attend, attend_back, heads_of, rows_of
from fedfm.models.frozen_parts import Norm, as_type_of, finish, finish_back, project, project_back
from fedfm.models.row_lora import Linear, RowLoRA

Linears = tuple[list[Linear], list[Linear]]

# Numbers of a state, beyond which every layer is a node of its own. What a node has kept is let go when its gradient is
# there: of all layers at once that is late, and to ask for fresh memory until then takes longer than a few nodes more.
LARGE = 2**16


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
        """hidden `[N, S, H]`, mask bool `[N, 1, S, S]`, False where a token is not looked at -> `[N, S, H]`."""
        if self._is_in_one_node(hidden):
            return through([self], hidden, mask)
        inward, outward = self.linears()
        trained, trained_after = _factors(inward), _factors(outward)
        if self.is_half:
            inward, outward = ([linear.in_its_type() for linear in linears] for linears in (inward, outward))
            self._fit_norms(hidden.device)
        heads = _Project.apply(hidden, self.head, inward, *trained)
        seen = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=self.scaling)
        return _Finish.apply(seen, hidden, outward, self.norms, *trained_after)

    def linears(self) -> Linears:
        """(W_q, W_k, W_v), (W_o, W_1, W_2) as they are at present."""
        inward = [module if type(module) is Linear else module.linear() for module in self.inward]
        return inward, [module if type(module) is Linear else module.linear() for module in self.outward]

    def _is_in_one_node(self, hidden: Tensor) -> bool:
        return hidden.device.type == "cpu" and not self.is_half and torch.is_grad_enabled()

    def _fit_norms(self, device: torch.device) -> None:
        """Copies of the norms' weights in another type do not move with the model."""
        weight, wanted = self.norms[0].weight, norm_type(device)
        if weight.dtype != wanted or weight.device != device:
            self.norms = [Norm.of(module, wanted) for module in self.modules]


def through(layers: Sequence[FrozenLayer], hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Layers one after the other; hidden and mask as one layer takes them."""
    if not layers[0]._is_in_one_node(hidden) or (hidden.numel() > LARGE and len(layers) > 1):
        for layer in layers:
            hidden = layer(hidden, mask)
        return hidden
    linears = [layer.linears() for layer in layers]
    factors = [factor for inward, outward in linears for factor in (*_factors(inward), *_factors(outward))]
    return _Layers.apply(hidden, mask, layers, linears, *factors)


def _factors(linears: Sequence[Linear]) -> list[Tensor]:
    return [factor for linear in linears for factor in linear.factors()]


class _Layers(torch.autograd.Function):
    """Layers one after the other, `hidden [N, S, H]` -> `[N, S, H]`; linears: of each (inward, outward)."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, mask: Tensor | None, layers: Sequence[FrozenLayer], linears: Sequence[Linears],
        *factors: Tensor,
    ) -> Tensor:  # fmt: skip
        n, x, kept, steps = len(hidden), hidden.reshape(-1, hidden.shape[2]), [], []
        is_wanted = ctx.needs_input_grad[0]  # no gradient passes below the lowest layer that trains
        for layer, (inward, outward) in zip(layers, linears, strict=True):
            projected, lows = project(x, inward)
            seen, of_heads = attend(projected, mask, n, layer.head, layer.scaling)
            y, of_rest = finish(seen, x, outward, layer.norms)
            is_wanted = is_wanted or any(linear.pairs for linear in (*inward, *outward))
            if is_wanted:
                first, second = 1 + len(lows), 1 + len(lows) + len(of_heads)
                kept += [x if lows else None, *lows, *of_heads, *of_rest]
                steps.append((layer, inward, outward, first, second, second + len(of_rest)))
            x = y
        ctx.save_for_backward(*kept)
        ctx.steps, ctx.shape = steps, hidden.shape
        return x.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        kept, gradients = ctx.saved_tensors, []
        end, dy = len(kept), dy.reshape(-1, ctx.shape[2])
        for layer, inward, outward, first, second, count in reversed(ctx.steps):
            own, end = kept[end - count : end], end - count
            d_seen, dx, of_outward = finish_back(dy, own[second:], outward, layer.norms)
            changes = attend_back(d_seen, own[first:second], ctx.shape[0], layer.head, layer.scaling)
            is_wanted = end > 0 or ctx.needs_input_grad[0]
            dy, of_inward = project_back(changes, own[0], own[1:first], inward, is_wanted, dx)
            gradients = [*of_inward, *of_outward, *gradients]
        return None if dy is None else dy.view(ctx.shape), None, None, None, *gradients


class _Project(torch.autograd.Function):
    """Queries, keys and values `[N, h, S, d]` of `hidden [N, S, H]`; head: d."""

    @staticmethod
    def forward(ctx, hidden: Tensor, head: int, linears: Sequence[Linear], *factors: Tensor) -> tuple[Tensor, ...]:
        x = as_type_of(linears[0].weight, hidden.reshape(-1, hidden.shape[2]))
        projected, lows = project(x, linears)
        ctx.save_for_backward(x if lows else None, *lows)
        ctx.linears, ctx.shape = linears, hidden.shape
        return tuple(heads_of(y, len(hidden), head) for y in projected)

    @staticmethod
    @once_differentiable
    def backward(ctx, *changes: Tensor) -> tuple[Tensor | None, ...]:
        x, *lows = ctx.saved_tensors
        rows = [rows_of(change) for change in changes]
        dx, gradients = project_back(rows, x, lows, ctx.linears, ctx.needs_input_grad[0])
        return None if dx is None else dx.view(ctx.shape), None, None, *gradients


class _Finish(torch.autograd.Function):
    """What follows on attention: `seen [N, h, S, d]` and the layer's input `hidden [N, S, H]` -> `[N, S, H]`."""

    @staticmethod
    def forward(
        ctx, seen: Tensor, hidden: Tensor, linears: Sequence[Linear], norms: Sequence[Norm], *factors: Tensor
    ) -> Tensor:
        y, kept = finish(rows_of(seen), hidden.reshape(-1, hidden.shape[2]), linears, norms)
        ctx.save_for_backward(*kept)
        ctx.linears, ctx.norms, ctx.shapes = linears, norms, (seen.shape, hidden.shape)
        return y.view(hidden.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy: Tensor) -> tuple[Tensor | None, ...]:
        (n, _, _, d), shape = ctx.shapes
        d_seen, change, gradients = finish_back(dy, ctx.saved_tensors, ctx.linears, ctx.norms)
        return heads_of(d_seen, n, d), change.view(shape), None, None, *gradients


def _parts(layer: nn.Module) -> tuple[list[nn.Module], list[nn.Module]]:
    """W_q, W_k, W_v, W_o, W_1, W_2; LayerNorm_1, LayerNorm_2."""
    own, attended, inner, outer = layer.attention.self, layer.attention.output, layer.intermediate, layer.output
    linears = [own.query, own.key, own.value, attended.dense, inner.dense, outer.dense]
    return linears, [attended.LayerNorm, outer.LayerNorm]


def _computed(module: nn.Module) -> Linear | RowLoRA:
    """What does not change as such; LoRA, whose factors and weight do, as it is."""
    return module if type(module) is RowLoRA else Linear(module.weight, module.bias)


def norm_type(device: torch.device) -> torch.dtype:
    """In which autocast computes the norms of a body in bfloat16."""
    return torch.float32 if device.type == "cuda" else torch.bfloat16
