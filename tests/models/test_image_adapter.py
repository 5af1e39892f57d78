"""An image becomes tokens at the scale of the body's own, with positions of its own."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from model_helpers import image_card, make_bound, make_config
from torch import nn

from fedfm.errors import ModelError
from fedfm.models import rows
from fedfm.models.body import load_body
from fedfm.models.lenet import HalfSize
from fedfm.models.site_model import build_model

# (C, h, w), tokens asked for, stem: tokens, patch: tokens. A stem halves each side, rounding up, until there are few
# enough: 28 -> 14 -> 7 -> 4, 64 -> 32 -> 16 -> 8 -> 4, 12x10 -> 6x5 -> 3x3, 100x30 -> ... -> 7x2. A patch is the
# smallest square that gives few enough: 28 / 7 = 4, 64 / 16 = 4, 32 / 8 = 4; 12x10 / 3 = 4x4 after padding 10 to 12,
# 100x30 / 15 = 7x2.
SIZES = {
    "28x28": ((1, 28, 28), 16, 16, 16),
    "64x64": ((1, 64, 64), 16, 16, 16),
    "64x64, 64 tokens": ((1, 64, 64), 64, 64, 64),
    "32x32x3": ((3, 32, 32), 16, 16, 16),
    "12x10": ((3, 12, 10), 16, 9, 16),
    "4x4": ((1, 4, 4), 16, 4, 16),
    "100x30": ((3, 100, 30), 16, 14, 14),
}


@pytest.mark.parametrize("kind", ["stem", "patch"])
@pytest.mark.parametrize("size", SIZES)
def test_the_number_of_tokens(size, kind):
    shape, asked, stem, patch = SIZES[size]
    config = make_config(f"body.image-adapter={kind}", f"body.image-tokens={asked}")
    matrix = make_bound(config, image_card(*shape))
    images = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = matrix.model.adapter(images)
        logits = matrix.model({"images": images})
    assert tokens.shape == (2, stem if kind == "stem" else patch, load_body(config).width)
    assert tokens.shape[1] <= asked
    assert logits.shape == (2, 2)
    assert torch.isfinite(logits).all()
    rows, columns = (matrix.columns[f"adapter.positions.{side}"][2][0] for side in ("rows", "columns"))
    assert rows * columns == tokens.shape[1]


def test_an_image_too_narrow_for_its_patches_is_refused():
    """100 x 2 pixels into 4 patches: squares of 25, wider than the image."""
    config = make_config("body.image-adapter=patch", "body.image-tokens=4")
    with pytest.raises(ModelError) as caught:
        build_model(config, image_card(1, 100, 2))
    assert "body.image-tokens: images of 100 x 2 pixels cannot be cut into at most 4 patches" in str(caught.value)
    assert "stem" in str(caught.value)
    make_bound(make_config("body.image-tokens=4"), image_card(1, 100, 2))  # as the advice says


@pytest.mark.parametrize("size", [(16, 16), (28, 28), (17, 40)])
def test_lenet_makes_one_token_without_position_or_norm(size):
    config = make_config("body.image-adapter=lenet")
    matrix = make_bound(config, image_card(3, *size))
    with torch.no_grad():
        tokens = matrix.model.adapter(torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert tokens.shape == (2, load_body(config).width)
    assert (tokens >= 0).all()  # behind a ReLU
    assert tokens.any()
    parts = {name.rpartition(".")[0] for name in matrix.columns if name.startswith("adapter.")}
    assert parts == {f"adapter.embed.{place}" for place in (0, 3, 7, 9)}


def test_an_image_too_small_for_lenet_is_refused():
    """16 pixels leave one place: (16 - 4) / 2 = 6, (6 - 4) / 2 = 1; 15 leave none."""
    with pytest.raises(ModelError) as caught:
        build_model(make_config("body.image-adapter=lenet"), image_card(1, 28, 15))
    message = str(caught.value)
    assert "images of 28 x 15 pixels are too small for it: it needs 16 a side" in message
    assert 'body.image-adapter = "lenet"' in message
    assert "stem" in message


def test_the_norm_starts_as_the_bodys_embedding_norm():
    """And so the tokens of any image start with the mean and spread that the body's text tokens have."""
    config = make_config()
    body = load_body(config).model
    with torch.no_grad():  # a norm that is not all ones and zeros, to see it copied
        norm = body.embeddings.LayerNorm
        kept = norm.weight.clone(), norm.bias.clone()
        norm.weight.copy_(torch.linspace(0.5, 2, norm.weight.numel()))
        norm.bias.copy_(torch.linspace(-1, 1, norm.weight.numel()))
        try:
            matrix = make_bound(config, image_card(), noise=0)
            values = matrix.read(0)
            assert np.array_equal(values["adapter.norm.weight"], norm.weight.numpy())
            assert np.array_equal(values["adapter.norm.bias"], norm.bias.numpy())
            tokens = matrix.model.adapter(torch.rand(2, 3, 28, 28))
            plain = (tokens - norm.bias) / norm.weight
            assert plain.mean(-1).abs().max() < 1e-4
            assert (plain.std(-1, unbiased=False) - 1).abs().max() < 1e-2
        finally:
            norm.weight.copy_(kept[0])
            norm.bias.copy_(kept[1])


def test_image_tokens_have_their_own_positions_and_not_those_of_text():
    """The text position table can hold anything: logits stay the same to the bit. Row and column tables matter."""
    config = make_config("body.image-tokens=9")
    matrix = make_bound(config, image_card(1, 12, 12))
    images = {"images": torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))}
    table = load_body(config).model.embeddings.position_embeddings.weight
    kept = table.detach().clone()
    with torch.no_grad():
        before = matrix.model(images)
        table.add_(7.0)
        try:
            assert torch.equal(matrix.model(images), before)
        finally:
            table.copy_(kept)
        values = matrix.read(0)
        values["adapter.positions.rows"] = values["adapter.positions.rows"][::-1].copy()
        matrix.load(0, values)
        assert not torch.allclose(matrix.model(images), before)


def test_there_is_no_batch_norm_and_an_image_does_not_see_its_neighbours():
    config = make_config("engine.dtype=float64")
    matrix = make_bound(config, image_card())
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in matrix.model.modules())
    images = torch.rand(4, 3, 28, 28, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = matrix.model({"images": images})
        alone = torch.cat([matrix.model({"images": image[None]}) for image in images])
    assert (together - alone).abs().max() < 1e-12


def test_positions_add_row_and_column_by_hand():
    from fedfm.models.rows import Active, RowPositions

    positions = RowPositions(Active(), 2, 3, 1)
    positions.bind("rows", torch.tensor([[[10.0], [20.0]]]))
    positions.bind("columns", torch.tensor([[[1.0], [2.0], [3.0]]]))
    added = positions(torch.zeros(1, 2, 3, 1))[0, ..., 0]
    assert added.tolist() == [[11.0, 12.0, 13.0], [21.0, 22.0, 23.0]]


def test_more_tokens_are_finer():
    counts = [make_bound(make_config(f"body.image-tokens={n}"), image_card(1, 64, 64)) for n in (16, 64, 256)]
    sides = [matrix.columns["adapter.positions.rows"][2][0] for matrix in counts]
    assert sides == [math.isqrt(n) for n in (16, 64, 256)]


def ties(*shape):
    """Values of which many are equal, as in a picture with a plain background."""
    return torch.randint(-2, 3, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(3, 2, 8, 6), (2, 3, 7, 9), (1, 1, 2, 2), (1, 4, 3, 3)])
def test_pooling_is_that_of_torch_to_the_digit_and_where_values_are_equal(shape, dtype):
    for values in (torch.randn(shape, generator=torch.Generator().manual_seed(1)), ties(*shape)):
        x = values.to(dtype).requires_grad_()
        theirs, ours = nn.MaxPool2d(2)(x), HalfSize()(x)
        change = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(2), dtype=dtype)
        assert torch.equal(ours, theirs)
        assert torch.equal(*(torch.autograd.grad(y, x, change)[0] for y in (ours, theirs)))


@pytest.mark.parametrize("much", [1, 10**9], ids=["one site after the other", "grouped"])
def test_a_convolution_of_three_sites_is_that_of_each_alone(much, monkeypatch):
    """Both ways of computing it, against torch's own at every site: values and all gradients, 1e-12 in float64."""
    monkeypatch.setattr(rows, "MUCH", much)
    draw = torch.Generator().manual_seed(0)
    active = rows.Active()
    active.rows = 3
    layer = rows.RowConv2d(active, 2, 4, 3, 2, 1)
    weight, bias = (torch.randn(3, *layer.shapes[n], generator=draw, dtype=torch.float64) for n in ("weight", "bias"))
    tensors = [layer.bind("weight", weight), layer.bind("bias", bias)]
    x = torch.randn(3 * 5, 2, 9, 7, generator=draw, dtype=torch.float64).requires_grad_()
    y = layer(x)
    change = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    found = torch.autograd.grad(y, [x, *tensors], change)
    for site, part in enumerate(x.detach().chunk(3)):
        own = [value.detach().clone().requires_grad_() for value in (part, weight[site], bias[site])]
        alone = nn.functional.conv2d(*own, stride=2, padding=1)
        here = slice(5 * site, 5 * site + 5)
        torch.testing.assert_close(y[here], alone, rtol=0, atol=1e-12)
        wanted = torch.autograd.grad(alone, own, change[here])
        for one, other in zip((found[0][here], found[1][site], found[2][site]), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_on_a_cpu_large_images_are_not_grouped(monkeypatch):
    """What decides is how much there is to do at a site, and over how many channels."""
    active, groups = rows.Active(), []
    active.rows = 2
    own = nn.functional.conv2d
    monkeypatch.setattr(rows.F, "conv2d", lambda *a: groups.append(a[6] if len(a) > 6 else 1) or own(*a))
    # 3 x 3 from 8 to 16 channels on 32 x 32 places are 1,179,648, more than 2**20, from 7 less; to 48 from 40, which
    # need 2**24, they are 17,694,720, and on 31 x 31 less
    for channels, out, side in ((8, 16, 64), (7, 16, 64), (40, 48, 64), (40, 48, 62)):
        layer = rows.RowConv2d(active, channels, out, 3, 2, 1)
        for name in layer.shapes:
            layer.bind(name, torch.zeros(2, *layer.shapes[name]))
        layer(torch.zeros(2, channels, side, side))
    assert groups == [1, 1, 2, 1, 1, 2]
