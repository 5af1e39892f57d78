"""Attention on a CPU, forward and backward, without a graph.

Shape letters: N texts, S tokens, H features, h heads of d features, T = N S.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fedfm.models.row_lora import scaled

aten = torch.ops.aten

SHORT = 64  # tokens, up to which products of all texts at once are the faster ones


def attend(
    projected: Sequence[Tensor], mask: Tensor | None, n: int, d: int, scale: float
) -> tuple[Tensor, list[Tensor | None]]:
    """`softmax(scale Q K^T + mask) V` of n texts, `[T, H]` as Q, K and V, and what its gradient wants.

    mask: `[N, 1, S, S]`, False where a token is not looked at. Digit for digit what `scaled_dot_product_attention`
    gives, except of one head and short texts: products of all texts at once take half the time of its kernel, which
    goes through them one by one. (Of several heads they would first have to be laid out anew, which takes that back.)
    """
    if _is_narrow(projected[0], n, d):
        heads = [y.view(n, -1, d) for y in projected]
        seen, p = _attend_by_products(heads, mask, scale)
        return seen.view(-1, d), [*heads, p]
    heads = [heads_of(y, n, d) for y in projected]
    added = None
    if mask is not None:
        added = torch.zeros(mask.shape, dtype=projected[0].dtype).masked_fill_(~mask, -torch.inf)
    kernel = aten._scaled_dot_product_flash_attention_for_cpu
    seen, log_sums = kernel(*heads, 0.0, False, attn_mask=added, scale=scale)
    return rows_of(seen), [*heads, seen, log_sums, added]


def attend_back(dy: Tensor, kept: Sequence[Tensor | None], n: int, d: int, scale: float) -> list[Tensor]:
    """The gradients of Q, K and V, `[T, H]` as `dy`, that of the result."""
    if _is_narrow(dy, n, d):
        return [change.view(-1, d) for change in _back_by_products(dy.view(n, -1, d), *kept, scale)]
    *rest, added = kept
    kernel = aten._scaled_dot_product_flash_attention_for_cpu_backward
    return [rows_of(change) for change in kernel(heads_of(dy, n, d), *rest, 0.0, False, attn_mask=added, scale=scale)]


def _is_narrow(y: Tensor, n: int, d: int) -> bool:
    return y.shape[1] == d and len(y) <= n * SHORT


def _attend_by_products(heads: Sequence[Tensor], mask: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """`P = softmax(scale Q K^T + mask)`, `O = P V`: O and P, of one head a text, `[N, S, d]`."""
    query, key, value = heads
    scores = scaled(scale, query, key.transpose(1, 2))
    if mask is not None:
        scores.masked_fill_(~mask[:, 0], -torch.inf)
    p = scores.softmax(dim=-1)
    return torch.bmm(p, value), p


def _back_by_products(
    do: Tensor, query: Tensor, key: Tensor, value: Tensor, p: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`dS = P * (dO V^T - rowsum(P * dO V^T))`; `dQ = scale dS K`, `dK = scale dS^T Q`, `dV = P^T dO`."""
    ds = torch._softmax_backward_data(torch.bmm(do, value.transpose(1, 2)), p, -1, p.dtype)
    return scaled(scale, ds, key), scaled(scale, ds.transpose(1, 2), query), torch.bmm(p.transpose(1, 2), do)


def heads_of(y: Tensor, n: int, d: int) -> Tensor:
    """`[T, H]` of n texts as `[N, h, S, d]`."""
    return y.view(n, len(y) // n, -1, d).transpose(1, 2)


def rows_of(x: Tensor) -> Tensor:
    """`[N, h, S, d]` as `[T, H]`."""
    n, h, s, d = x.shape
    return x.transpose(1, 2).reshape(n * s, h * d)
