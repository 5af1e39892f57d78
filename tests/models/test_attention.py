"""Attention and its gradient against torch's own, whose graph is the oracle."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fedfm.models.attention import SHORT, attend, attend_back

SCALE = 0.3


def drawn(texts: int, tokens: int, features: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Q, K, V and the gradient of the result, `[T, H]`."""
    draw = torch.Generator().manual_seed(tokens)
    shape = (4, texts * tokens, features)
    return list(torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype))


def oracle(projected, change, mask, texts: int, head: int):
    """The result and the three gradients by torch, `[T, H]`."""
    leaves = [y.clone().requires_grad_() for y in projected]
    heads = [y.view(texts, len(y) // texts, -1, head).transpose(1, 2) for y in leaves]
    seen = F.scaled_dot_product_attention(*heads, attn_mask=mask, scale=SCALE)
    rows = seen.transpose(1, 2).reshape(change.shape)
    return rows.detach(), torch.autograd.grad(rows, leaves, change)


def masked(texts: int, tokens: int) -> torch.Tensor:
    """Every text is one token shorter than the one before, the first one whole."""
    lengths = tokens - torch.arange(texts) % max(tokens - 1, 1)
    return (torch.arange(tokens) < lengths[:, None])[:, None, None, :].expand(-1, 1, tokens, -1)


@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "padded"])
@pytest.mark.parametrize(
    ("tokens", "head"),
    [(1, 12), (16, 12), (SHORT, 12), (SHORT + 1, 12), (16, 4), (SHORT + 1, 4)],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-14), (torch.float32, 5e-6)], ids=["64", "32"])
def test_it_is_torchs(tokens, head, is_masked, dtype, tolerance):
    """12 features of one head or three, in texts shorter and longer than what products are for."""
    *projected, change = drawn(3, tokens, 12, dtype)
    mask = masked(3, tokens) if is_masked else None
    expected, gradients = oracle(projected, change, mask, 3, head)
    seen, kept = attend(projected, mask, 3, head, SCALE)
    found = attend_back(change, kept, 3, head, SCALE)
    assert (seen - expected).abs().max() <= tolerance
    assert all((own - one).abs().max() <= tolerance for own, one in zip(found, gradients, strict=True))
    assert any(one.abs().max() > 1000 * tolerance for one in gradients)


@pytest.mark.parametrize(("tokens", "head"), [(16, 4), (SHORT + 1, 4), (SHORT + 1, 12)], ids=str)
@pytest.mark.parametrize("is_masked", [False, True], ids=["whole", "padded"])
def test_torchs_kernel_is_used_digit_for_digit(tokens, head, is_masked):
    *projected, change = drawn(3, tokens, 12, torch.float32)
    mask = masked(3, tokens) if is_masked else None
    expected, gradients = oracle(projected, change, mask, 3, head)
    seen, kept = attend(projected, mask, 3, head, SCALE)
    assert torch.equal(seen, expected)
    assert all(map(torch.equal, attend_back(change, kept, 3, head, SCALE), gradients))


def test_what_is_masked_is_not_looked_at():
    """Other values behind a text's end change nothing before it."""
    *projected, _ = drawn(3, 16, 12, torch.float32)
    mask = masked(3, 16)
    before, _ = attend(projected, mask, 3, 12, SCALE)
    for y in projected:
        y.view(3, 16, 12)[1:, -1] = 100.0
    after, _ = attend(projected, mask, 3, 12, SCALE)
    assert torch.equal(before.view(3, 16, 12)[1:, :-1], after.view(3, 16, 12)[1:, :-1])
