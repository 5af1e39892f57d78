"""The image adapter: an image becomes tokens that the body can read.

    image [B, C, h, w] -> convolutional stem or linear patches -> grid of tokens [B, gh, gw, H]
                       -> + learned row and column positions -> LayerNorm that starts as the body's own

The LayerNorm puts the tokens at the scale of the body's text tokens (as in ORCA: Shen et al., 2023,
https://arxiv.org/abs/2302.05738). The text position table is not used, and there is no BatchNorm, whose running
statistics would leave the site.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from fedfm.errors import ModelError
from fedfm.models.lenet import LeNet
from fedfm.models.rows import Active, RowConv2d, RowGroupNorm, RowLayerNorm, RowPositions

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
            self.embed, self.is_grid = LeNet(active, channels, tuple(size), width), False
            return
        self.is_grid = True
        self.embed, grid = (_stem if kind == "stem" else _patches)(active, channels, tuple(size), width, tokens)
        self.positions = RowPositions(active, *grid, width)
        self.norm = RowLayerNorm(active, norm)

    def forward(self, images: Tensor) -> Tensor:
        x = (images - 0.5).mul_(4)
        if not self.is_grid:
            return self.embed.forward(x)
        # Not by calls of the modules: around ten calls torch does as much as a convolution of a few images.
        for layer in self.embed._modules.values():
            x = layer.forward(x)
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


class _PadTo(nn.Module):
    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows, self.columns = rows, columns

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, self.columns, 0, self.rows)) if self.rows or self.columns else x
