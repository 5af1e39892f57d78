"""The image adapter: an image becomes tokens that the body can read.

    image [B, C, h, w] -> convolutional stem or linear patches -> grid of tokens [B, gh, gw, H]
                       -> + learned row and column positions -> LayerNorm that starts as the body's own

The LayerNorm puts the tokens at the scale of the body's text tokens (as in ORCA: Shen et al., 2023,
https://arxiv.org/abs/2302.05738). The text position table is not used, and there is no BatchNorm, whose running
statistics would leave the site.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedfm.errors import ModelError
from fedfm.models.rows import Active, RowConv2d, RowGroupNorm, RowLayerNorm, RowLinear, RowPositions

STEM_CHANNELS = 32


class ImageAdapter(nn.Module):
    """`[k*B, C, h, w]` in [0, 1] -> tokens `[k*B, S, H]`, S at most `tokens`; of "lenet" one token, `[k*B, H]`.

    kind: "stem" or "patch", a grid of tokens with positions and a LayerNorm; "lenet", one token without either.
    """

    def __init__(
        self, active: Active, kind: str, shape: tuple[int, int, int], width: int, tokens: int, norm: nn.LayerNorm
    ):
        super().__init__()
        channels, *size = shape
        if kind == "lenet":
            self.embed, self.is_grid = _lenet(active, channels, tuple(size), width), False
            return
        self.is_grid = True
        self.embed, grid = (_stem if kind == "stem" else _patches)(active, channels, tuple(size), width, tokens)
        self.positions = RowPositions(active, *grid, width)
        self.norm = RowLayerNorm(active, norm)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - 0.5).mul_(4)
        if not self.is_grid:
            x = _channels_last(x)
        # Not by calls of the modules: around ten calls torch does as much as a convolution of a few images.
        for layer in self.embed._modules.values():
            x = layer.forward(x)
        if not self.is_grid:
            return x
        grid = x.permute(0, 2, 3, 1)
        return self.norm(self.positions(grid).flatten(1, 2))


def _stem(active: Active, channels: int, size: tuple[int, int], width: int, tokens: int):
    """3x3 convolutions of stride 2 with GroupNorm and GELU until at most `tokens` places are left, then 1x1 to H."""
    stages: list[nn.Module] = []
    wide = STEM_CHANNELS
    while not stages or math.prod(size) > tokens:
        stages += [RowConv2d(active, channels, wide, 3, 2, 1), RowGroupNorm(active, 8, wide), nn.GELU()]
        channels, wide = wide, min(wide * 2, 128)
        size = tuple((side + 1) // 2 for side in size)
    stages.append(RowConv2d(active, channels, width, 1, 1, 0))
    return nn.Sequential(*stages), size


def _patches(active: Active, channels: int, size: tuple[int, int], width: int, tokens: int):
    """One linear embedding of square patches, the smallest that give at most `tokens` of them."""
    patch = next(p for p in range(1, max(size) + 1) if math.prod(math.ceil(side / p) for side in size) <= tokens)
    if patch > min(size):
        what = f"images of {size[0]} x {size[1]} pixels cannot be cut into at most {tokens} patches"
        raise ModelError(what, where="body.image-tokens", mend='body.image-adapter="stem", or more image-tokens')
    grid = tuple(math.ceil(side / patch) for side in size)
    pad = _PadTo(grid[0] * patch - size[0], grid[1] * patch - size[1])
    return nn.Sequential(pad, RowConv2d(active, channels, width, patch, patch, 0)), grid


def _lenet(active: Active, channels: int, size: tuple[int, int], width: int) -> nn.Sequential:
    """The small CNN that the federated literature compares with, after LeCun, Bottou, Bengio, Haffner, 1998.

    "Gradient-Based Learning Applied to Document Recognition", https://doi.org/10.1109/5.726791, with ReLU and maximum
    pooling. With H = 84, no body (`weights = "none"`), 28x28 grey pixels and 10 classes it has 44,426 parameters.
    """
    if min(size) < 16:
        what = f"images of {size[0]} x {size[1]} pixels are too small for it: it needs 16 a side"
        raise ModelError(what, where='body.image-adapter = "lenet"', mend='body.image-adapter="stem", or image-size')
    wide = 16 * math.prod(((side - 4) // 2 - 4) // 2 for side in size)
    return nn.Sequential(
        RowConv2d(active, channels, 6, 5, 1, 0), _HalfSize(), nn.ReLU(),  # as pooled ReLUs, of a quarter as many
        RowConv2d(active, 6, 16, 5, 1, 0), _HalfSize(), nn.ReLU(), nn.Flatten(),
        RowLinear(active, wide, 120, math.sqrt(2 / wide)), nn.ReLU(),  # He et al. 2015, as the convolutions
        RowLinear(active, 120, width, math.sqrt(2 / 120)), nn.ReLU(),
    )  # fmt: skip


class _HalfSize(nn.Module):
    """`nn.MaxPool2d(2)`, to the digit: `[N, C, h, w] -> [N, C, h // 2, w // 2]`."""

    def forward(self, x: Tensor) -> Tensor:
        return F.max_pool2d(_channels_last(x), 2)


def _channels_last(x: Tensor) -> Tensor:
    """`x [N, C, h, w]`, on a CPU with its channels side by side in memory, as the layers then keep them: there torch
    pools by vectors, and value by value where channels stand first."""
    if x.device.type != "cpu":
        return x
    if x.shape[1] == 1:  # of one channel both orders are the same, and torch would take it for channels first
        return x.reshape(len(x), *x.shape[2:], 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)


class _PadTo(nn.Module):
    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.columns, 0, self.rows)) if self.rows or self.columns else x
