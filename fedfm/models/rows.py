"""Modules whose trainable parameters have one row for each site.

Every parameter is `[K, *shape]`, row k belonging to site k; the frozen body between them sees one batch of K * B
examples, rows of a site adjacent. The work of one site is the case K = 1, not another path. Only the first `active`
rows take part (sites with fewer steps stand last and leave early).

Shape letters: K sites, B examples of a site, S tokens, H features.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MUCH = 2**20  # multiplications of a convolution for a site, from which on the sites come one after the other on a CPU
NARROW = 32  # channels: with more of them a grouped convolution fills the CPU's vectors, and only a large one is slower


class Active:
    """How many rows take part in the present step; one object shared by all modules of a model."""

    def __init__(self) -> None:
        self.rows = 1


class RowModule(nn.Module, ABC):
    """A module that names its trainable tensors in `shapes` (shape of one row) and knows their start values."""

    def __init__(self, active: Active, shapes: dict[str, tuple[int, ...]]):
        super().__init__()
        self.active = [active]  # in a list: not a module, not a parameter
        self.shapes = shapes

    @property
    def k(self) -> int:
        return self.active[0].rows

    def row(self, attribute: str) -> Tensor:
        """The active rows of a parameter, `[k, *shape]`; all of them without the cost of a slice and its gradient."""
        rows = self._parameters[attribute]
        return rows if rows.shape[0] == self.k else rows[: self.k]  # len() of a tensor is Python

    def bind(self, attribute: str, rows: Tensor) -> nn.Parameter:
        """Make `rows [K, *shape]`, a view of the client matrix, the parameter `attribute`."""
        parameter = nn.Parameter(rows)
        setattr(self, attribute, parameter)
        return parameter

    def rebind(self, attribute: str, parameter: nn.Parameter) -> None:
        """Put back a parameter that `bind` has made."""
        self._parameters[attribute] = parameter

    @abstractmethod
    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        """The start value of one row of `attribute`, float32."""


class _Affine(RowModule):
    """Of one site weight and bias are bound as an ordinary layer's: views of them would be operators at each step."""

    def bind(self, attribute: str, rows: Tensor) -> nn.Parameter:
        return super().bind(attribute, rows[0] if len(rows) == 1 else rows)

    def weight_and_bias(self) -> tuple[Tensor, Tensor]:
        """Those of one site `[out, in, ...]` and `[out]`, or of the active rows with a dimension more."""
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        if bias.dim() > 1:
            weight, bias = (weight[0], bias[0]) if self.k == 1 else (self.row("weight"), self.row("bias"))
        return weight, bias


class RowLinear(_Affine):
    """`x [k*B, ..., in] -> [k*B, ..., out]` with a weight and a bias for each site.

    `deviation`: standard deviation of the weight's start values.
    """

    def __init__(self, active: Active, in_features: int, out_features: int, deviation: float = 0.02):
        super().__init__(active, {"weight": (out_features, in_features), "bias": (out_features,)})
        self.out_features, self.deviation = out_features, deviation

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight_and_bias()
        if self.k == 1:
            return F.linear(x, weight, bias)
        flat = x.reshape(self.k, -1, x.shape[-1])
        return torch.baddbmm(bias[:, None], flat, weight.transpose(1, 2)).view(*x.shape[:-1], self.out_features)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        shape = self.shapes[attribute]
        return torch.zeros(shape) if attribute == "bias" else torch.randn(shape, generator=generator) * self.deviation


class RowLayerNorm(RowModule):
    """LayerNorm over the last dimension with scale and shift for each site; starts as `like`."""

    def __init__(self, active: Active, like: nn.LayerNorm):
        (width,) = like.normalized_shape
        shapes = {"weight": (width,)} if like.bias is None else {"weight": (width,), "bias": (width,)}
        super().__init__(active, shapes)
        self.width, self.eps = width, like.eps
        self.like = [like]

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, (self.width,), eps=self.eps).view(self.k, -1, self.width) * self.row("weight")[:, None]
        if "bias" in self.shapes:
            y = y + self.row("bias")[:, None]
        return y.view(x.shape)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        return getattr(self.like[0], attribute).detach().float().cpu()


class RowConv2d(_Affine):
    """A convolution with weights for each site: `[k*B, C, h, w] -> [k*B, C', h', w']`.

    As one grouped convolution, or, on a CPU, one site after the other where each has much to do: grouped, the images
    of all sites are laid out anew, which then takes longer than the sum of the sites.
    """

    def __init__(self, active: Active, channels: int, out_channels: int, kernel: int, stride: int, padding: int):
        super().__init__(active, {"weight": (out_channels, channels, kernel, kernel), "bias": (out_channels,)})
        self.stride, self.padding = stride, padding
        self.is_pointwise = kernel == stride == 1 and padding == 0
        self.is_narrow = max(channels, out_channels) <= NARROW

    def forward(self, x: Tensor) -> Tensor:
        k, (weight, bias) = self.k, self.weight_and_bias()
        if k == 1:
            return F.conv2d(x, weight, bias, self.stride, self.padding)
        if self.is_pointwise:  # a grouped convolution of one pixel takes twice the time of this product
            return self._pointwise(x, weight, bias)
        if x.device.type == "cpu" and self._multiplications(x) >= k * MUCH * (1 if self.is_narrow else 16):
            sites = zip(x.chunk(k), weight.unbind(), bias.unbind(), strict=True)
            return torch.cat([F.conv2d(part, w, b, self.stride, self.padding) for part, w, b in sites])
        wide = x.view(k, -1, *x.shape[1:]).transpose(0, 1).reshape(-1, k * x.shape[1], *x.shape[2:])
        y = F.conv2d(wide, weight.flatten(0, 1), bias.flatten(), self.stride, self.padding, 1, k)
        return y.view(y.shape[0], k, -1, *y.shape[2:]).transpose(0, 1).flatten(0, 1)

    def _pointwise(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        k, (_, c, h, w) = self.k, x.shape
        flat = x.view(k, -1, c, h * w).transpose(1, 2).flatten(2)
        y = torch.baddbmm(bias[:, :, None], weight.flatten(2), flat)
        return y.view(k, -1, len(x) // k, h, w).transpose(1, 2).flatten(0, 1)

    def _multiplications(self, x: Tensor) -> int:
        weight = self.shapes["weight"]
        sides = [(side + 2 * self.padding - weight[-1]) // self.stride + 1 for side in x.shape[2:]]
        return len(x) * math.prod(sides) * math.prod(weight)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        shape = self.shapes[attribute]
        if attribute == "bias":
            return torch.zeros(shape)
        return torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))


class RowGroupNorm(RowModule):
    """GroupNorm over `[k*B, C, h, w]` with scale and shift for each site."""

    def __init__(self, active: Active, groups: int, channels: int):
        super().__init__(active, {"weight": (channels,), "bias": (channels,)})
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        per_site = F.group_norm(x, self.groups).view(self.k, -1, *x.shape[1:])
        weight, bias = (self.row(name)[:, None, :, None, None] for name in ("weight", "bias"))
        return (per_site * weight + bias).view(x.shape)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        return torch.ones(self.shapes[attribute]) if attribute == "weight" else torch.zeros(self.shapes[attribute])


class RowPositions(RowModule):
    """Adds learned row and column positions to a grid of tokens `[k*B, h, w, H]`."""

    def __init__(self, active: Active, height: int, width: int, features: int):
        super().__init__(active, {"rows": (height, features), "columns": (width, features)})

    def forward(self, x: Tensor) -> Tensor:
        grid = self.row("rows")[:, :, None] + self.row("columns")[:, None]  # [k, h, w, H]
        return (x.view(self.k, -1, *x.shape[1:]) + grid[:, None]).view(x.shape)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        return torch.randn(self.shapes[attribute], generator=generator) * 0.02


class Whole(RowModule):
    """The parameters of an ordinary module, trained where they are (tuning `full`): one site at a time, K = 1."""

    def __init__(self, active: Active, inner: nn.Module):
        own = dict(inner.named_parameters(recurse=False))
        super().__init__(active, {name: tuple(value.shape) for name, value in own.items()})
        self.inner = [inner]
        self.pretrained = {name: value.detach() for name, value in own.items()}

    def bind(self, attribute: str, rows: Tensor) -> nn.Parameter:
        parameter = nn.Parameter(rows[0])
        setattr(self.inner[0], attribute, parameter)
        return parameter

    def rebind(self, attribute: str, parameter: nn.Parameter) -> None:
        setattr(self.inner[0], attribute, parameter)

    def start(self, attribute: str, generator: torch.Generator) -> Tensor:
        return self.pretrained[attribute].float().cpu()
