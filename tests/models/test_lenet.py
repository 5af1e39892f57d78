"""The small CNN as one node of the graph against its layers one by one, which torch differentiates."""

from __future__ import annotations

import pytest
import torch

from fedfm.models import lenet
from fedfm.models.lenet import LeNet
from fedfm.models.rows import Active

WIDTH = 12
SHAPES = {  # sites, images of each, channels, pixels
    "one site": (1, 5, 1, (28, 28)),
    "one image": (1, 1, 1, (28, 28)),
    "several sites": (3, 4, 1, (28, 28)),
    "colour": (2, 3, 3, (20, 20)),
    "not square": (2, 3, 1, (18, 16)),
    "odd": (2, 2, 1, (23, 19)),
}


def network(sites: int, channels: int, size: tuple[int, int], rows: int = 0, dtype=torch.float64) -> LeNet:
    """With weights and biases of its own for each of `rows` sites, of which the first `sites` take part."""
    active = Active()
    active.rows = sites
    made, draw = LeNet(active, channels, size, WIDTH), torch.Generator().manual_seed(3)
    for layer in made.trained:
        for name, shape in layer.shapes.items():
            start = layer.start(name, draw) if name == "weight" else torch.zeros(shape)
            noise = torch.randn(rows or sites, *shape, generator=draw) * 0.05
            layer.bind(name, (start + noise).to(dtype))
    return made


def passes(made: LeNet, images: torch.Tensor, monkeypatch, as_one: bool) -> list[torch.Tensor]:
    """What it makes of the images, and the gradients of the images and all parameters for a random direction."""
    monkeypatch.setattr(LeNet, "is_quicker_as_one", lambda *_: as_one)
    images = images.clone().requires_grad_()
    out = made(images)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    parameters = [p for layer in made.trained for p in (layer.weight, layer.bias)]
    return [out.detach(), *torch.autograd.grad((out * direction).sum(), [images, *parameters])]


def assert_alike(made: LeNet, images: torch.Tensor, monkeypatch) -> None:
    expected, found = (passes(made, images, monkeypatch, as_one) for as_one in (False, True))
    for one, other in zip(expected, found, strict=True):
        assert one.shape == other.shape and one.abs().max() > 0
        assert torch.allclose(one, other, rtol=1e-11, atol=1e-11 * float(one.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_one_node_makes_what_the_layers_make_and_their_gradients(shape, monkeypatch):
    sites, images, channels, size = SHAPES[shape]
    draw = torch.Generator().manual_seed(1)
    pixels = torch.randn(sites * images, channels, *size, generator=draw, dtype=torch.float64)
    assert_alike(network(sites, channels, size), pixels, monkeypatch)


@pytest.mark.parametrize("sites", [1, 2])
def test_sites_that_have_left_take_no_part(sites, monkeypatch):
    """Rows of a matrix of three sites; of those that have left the gradient is nothing."""
    made = network(sites, 1, (20, 20), rows=3)
    pixels = torch.randn(sites * 2, 1, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert_alike(made, pixels, monkeypatch)
    *_, bias = passes(made, pixels, monkeypatch, as_one=True)
    assert bias[:sites].any() and not bias[sites:].any()


def test_of_equal_pixels_the_same_one_is_the_largest(monkeypatch):
    """Pooling sends a gradient to one of four equals; images of two values have them everywhere."""
    pixels = torch.randint(0, 2, (6, 1, 28, 28), generator=torch.Generator().manual_seed(1)).double()
    pixels[0] = 0  # and one image of nothing else
    assert_alike(network(2, 1, (28, 28)), pixels, monkeypatch)


def test_a_gradient_comes_back_for_a_second_time_and_from_a_sum(monkeypatch):
    """A sum's gradient is one number, spread without memory of its own; a graph that is kept gives the same again."""
    monkeypatch.setattr(LeNet, "is_quicker_as_one", lambda *_: True)
    made = network(2, 1, (20, 20))
    out = made(torch.randn(4, 1, 20, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    parameters = [layer.weight for layer in made.trained]
    first = torch.autograd.grad(out.sum(), parameters, retain_graph=True)
    second = torch.autograd.grad(out.sum(), parameters)
    assert all(torch.equal(a, b) and a.any() for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("sites", "images", "channels", "is_one"),
    [(1, 16, 1, True), (8, 16, 1, True), (1, 16, 3, False), (8, 16, 3, True), (1, 300, 1, False), (2, 300, 1, False)],
)
def test_it_is_one_node_where_that_is_quicker(sites, images, channels, is_one):
    """Not for one site of colour images, nor where unfolded pixels leave the cache."""
    pixels = torch.zeros(sites * images, channels, 28, 28, dtype=torch.float32)
    out = network(sites, channels, (28, 28), dtype=torch.float32)(pixels)
    assert (type(out.grad_fn).__name__ == "_OneNodeBackward") is is_one


def test_without_gradients_it_makes_the_same(monkeypatch):
    made = network(1, 1, (28, 28))
    pixels = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected, *_ = passes(made, pixels, monkeypatch, as_one=True)
    with torch.no_grad():
        assert torch.equal(made(pixels), expected)


def test_what_it_keeps_can_be_counted():
    """The budget of sites at once counts what autograd keeps: pixels, unfolded ones and those between layers too."""
    made, kept = network(1, 1, (28, 28)), []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        made(torch.randn(2, 1, 28, 28, dtype=torch.float64))
    assert sum(kept) > 2 * (28 * 28 + lenet.KERNEL**2 * 24**2 + 6 * 24**2)
