"""The small CNN that the federated literature compares with, and all of its layers as one node of the graph.

    image [C, h, w] -> 6 convolutions of 5x5, ReLU, halved -> 16 of 5x5, ReLU, halved -> 120, ReLU -> H, ReLU

After LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998,
https://doi.org/10.1109/5.726791, with ReLU and maximum pooling. With H = 84, no body (`weights = "none"`), 28x28 grey
pixels and 10 classes it has 44,426 parameters.

Its layers are so small that a CPU spends most of a step around them: torch lays the images out anew for every
convolution and pools value by value. The node keeps a site's images side by side, innermost in memory, from the pixels
to the last layer. A convolution is then the product of its weights with the unfolded pixels, pooling goes by vectors,
and nothing is laid out anew. It is used on a CPU where a site's unfolded pixels stay in the cache.

Shape letters: k sites, B images of a site, C channels, O channels that a convolution makes, s side of its kernels,
h, w pixels, h', w' places of a kernel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedfm.errors import ModelError
from fedfm.models.rows import Active, RowConv2d, RowLinear

KERNEL = 5
CACHE = 2**20  # numbers: a site's unfolded pixels up to which the node is quicker; 64 grey images of 28x28 are 9.2e5

_max_pool = torch._C._nn.max_pool2d_with_indices
_max_pool_backward = torch.ops.aten.max_pool2d_with_indices_backward.default
_relu_backward = torch.ops.aten.threshold_backward.default  # the overload: a packet looks for it at every call


class LeNet(nn.Sequential):
    """`[k*B, C, h, w] -> [k*B, H]`. Raises ModelError where images have less than 16 pixels a side."""

    def __init__(self, active: Active, channels: int, size: tuple[int, int], width: int):
        if min(size) < 16:
            what = f"images of {size[0]} x {size[1]} pixels are too small for it: it needs 16 a side"
            mend = 'body.image-adapter="stem", or image-size'
            raise ModelError(what, where='body.image-adapter = "lenet"', mend=mend)
        wide = 16 * math.prod(((side - 4) // 2 - 4) // 2 for side in size)
        super().__init__(
            RowConv2d(active, channels, 6, KERNEL, 1, 0), HalfSize(), nn.ReLU(),  # as pooled ReLUs, a quarter of them
            RowConv2d(active, 6, 16, KERNEL, 1, 0), HalfSize(), nn.ReLU(), nn.Flatten(),
            RowLinear(active, wide, 120, math.sqrt(2 / wide)), nn.ReLU(),  # He et al. 2015, as the convolutions
            RowLinear(active, 120, width, math.sqrt(2 / 120)), nn.ReLU(),
        )  # fmt: skip
        self.trained = [layer for layer in self if isinstance(layer, (RowConv2d, RowLinear))]
        self.is_grey = channels == 1
        self.unfolded = channels * KERNEL**2 * math.prod(side - KERNEL + 1 for side in size)  # numbers of an image

    def forward(self, images: Tensor) -> Tensor:
        k = self.trained[0].k
        if self.is_quicker_as_one(images, k):
            return _OneNode.apply(images, k, *(part for layer in self.trained for part in layer.weight_and_bias()))
        x = channels_last(images)
        # Not by calls of the modules: around ten calls torch does as much as a convolution of a few images.
        for layer in self._modules.values():
            x = layer.forward(x)
        return x

    def is_quicker_as_one(self, images: Tensor, k: int) -> bool:
        """Is it for several sites, of grey images for one too. Of colour images the first product is three times as
        long, and for one site torch's convolution is as quick."""
        fits = images.device.type == "cpu" and len(images) // k * self.unfolded <= CACHE
        return fits and (k > 1 or self.is_grey) and not torch.is_autocast_enabled("cpu")


class HalfSize(nn.Module):
    """`nn.MaxPool2d(2)`, to the digit: `[N, C, h, w] -> [N, C, h // 2, w // 2]`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(channels_last(x), 2)


def channels_last(x: Tensor) -> Tensor:
    """`x [N, C, h, w]`, on a CPU with its channels side by side in memory, as the layers then keep them: there torch
    pools by vectors, and value by value where channels stand first."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:  # of one channel both orders are the same, and torch would take it for channels first
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


class _OneNode(torch.autograd.Function):
    """All layers. Weights `[k, O, ...]` and biases `[k, O]` in their order, without k where there is one site."""

    @staticmethod
    def forward(ctx, images: Tensor, k: int, w1, b1, w2, b2, w3, b3, w4, b4) -> Tensor:
        x = images.view(k, -1, *images.shape[1:]).permute(0, 2, 3, 4, 1).contiguous()  # [k, C, h, w, B]
        x1, first = _convolve(x, w1, b1)
        x2, second = _convolve(x1, w2, b2)
        x2 = x2.view(*b3.shape[:-1], -1, x.shape[-1])  # [k, features, B] from here on
        x3 = (w3 @ x2).add_(b3[..., None]).relu_()
        x4 = (w4 @ x3).add_(b4[..., None]).relu_()
        ctx.save_for_backward(w1, w2, w3, w4, x2, x3, x4, *first, *second)
        return x4.transpose(-1, -2).reshape(len(images), -1)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):
        w1, w2, w3, w4, x2, x3, x4, *kept = ctx.saved_tensors
        half = len(kept) // 2
        first, second = _Convolved(*kept[:half]), _Convolved(*kept[half:])
        g = grad.reshape(*x4.shape[:-2], x4.shape[-1], x4.shape[-2]).transpose(-1, -2)
        g, *of_4 = _linear_backward(g, w4, x3, x4)
        g, *of_3 = _linear_backward(g, w3, x2, x3)
        g, *of_2 = _convolve_backward(g, w2, second, True)
        g, *of_1 = _convolve_backward(g, w1, first, ctx.needs_input_grad[0])
        images = None if g is None else g.permute(0, 4, 1, 2, 3).flatten(0, 1)
        return images, None, *of_1, *of_2, *of_3, *of_4


def _linear_backward(g: Tensor, weight: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of x, weight and bias of y = relu(weight x + bias), from that of y."""
    g = _relu_backward(g, y, 0)
    return weight.transpose(-1, -2) @ g, g @ x.transpose(-1, -2), g.sum(-1)


class _Convolved(NamedTuple):
    """What the gradient of a convolution needs: its pixels `x [k, C, h, w, B]`, those of its last site `unfolded`, what
    was `convolved`, `halved` and cut at zero, `[k * O, B, ...]`, and the `places` of the largest of four."""

    x: Tensor
    unfolded: Tensor
    convolved: Tensor
    halved: Tensor
    places: Tensor


def _convolve(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, _Convolved]:
    """A convolution, halved, ReLU: `[k, C, h, w, B]` -> `[k, O, h' // 2, w' // 2, B]`, and what its gradient needs.

    As products, one site after the other: the unfolded pixels of all of them would leave the cache, and take longer to
    fetch in the backward pass than to unfold again.
    """
    k, o, b = len(x), bias.shape[-1], x.shape[-1]
    windows, unfolded = _windows(x)
    y = x.new_empty(k, o, unfolded.shape[1])
    for own, into, times, plus in zip(windows, y, weight.view(k, o, -1), bias.view(k, o, 1), strict=True):
        unfolded.view(own.shape).copy_(own)
        torch.addmm(plus, times, unfolded, out=into)
    high, wide = windows.shape[4:6]
    convolved = y.view(k * o, high, wide, b).permute(0, 3, 1, 2)  # for torch: images of b channels, which stand last
    halved, places = _max_pool(convolved, (2, 2))
    made = halved.relu_().permute(0, 2, 3, 1).view(k, o, high // 2, wide // 2, b)
    return made, _Convolved(x, unfolded, convolved, halved, places)


def _windows(x: Tensor) -> tuple[Tensor, Tensor]:
    """What every kernel's weight meets, `[k, C, s, s, h', w', B]`, a view of x; and room for one site's."""
    (k, c, h, w, b), s = x.shape, KERNEL
    high, wide = h - s + 1, w - s + 1
    strides = c * h * w * b, h * w * b, w * b, b, w * b, b, 1
    return x.as_strided((k, c, s, s, high, wide, b), strides), x.new_empty(c * s * s, high * wide * b)


def _convolve_backward(g: Tensor, weight: Tensor, of: _Convolved, has_before: bool):
    """The gradients of x (None where nothing before it needs one), weight and bias, from that of what was made."""
    k, o = len(of.x), weight.shape[-4]
    g = _relu_backward(g.view(k * o, *of.halved.shape[2:], -1).permute(0, 3, 1, 2), of.halved, 0)
    g = _max_pool_backward(g, of.convolved, (2, 2), (2, 2), (0, 0), (1, 1), False, of.places)
    g = g.permute(0, 2, 3, 1).view(k, o, -1)
    of_weight = weight.new_empty(k, o, len(of.unfolded))
    if k == 1:  # whose pixels are still unfolded
        torch.mm(g[0], of.unfolded.t(), out=of_weight[0])
    else:
        windows, unfolded = _windows(of.x)
        for own, grad, into in zip(windows, g, of_weight, strict=True):
            unfolded.view(own.shape).copy_(own)
            torch.mm(grad, unfolded.t(), out=into)
    of_x = _fold(g, weight, of.x.shape) if has_before else None
    return of_x, of_weight.view(weight.shape), g.sum(-1).view(weight.shape[:-3])


def _fold(g: Tensor, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of x, from that of the convolution `[k, O, h' * w' * B]`: each window's back where it was taken."""
    (k, c, h, w, b), s = shape, KERNEL
    high, wide = h - s + 1, w - s + 1
    turned = weight.view(k, g.shape[1], -1).transpose(1, 2)
    product = turned @ g if k > 1 else torch.mm(turned[0], g[0])  # not as a batch of one, which is a slower call
    windows = product.view(k * c, s, s, high, wide, b)
    rows = g.new_zeros(k * c, h, s, wide, b)
    for i, part in enumerate(windows.transpose(2, 3).unbind(1)):
        rows.narrow(1, i, high).add_(part)
    x = g.new_zeros(k * c, h, w, b)
    for j, part in enumerate(rows.unbind(2)):
        x.narrow(2, j, wide).add_(part)
    return x.view(shape)
