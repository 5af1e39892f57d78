"""The client matrix: the trainable parameters of K sites are the rows of one matrix Theta [K, P].

Module parameters are views of Theta and their gradients views of one gradient matrix, so that broadcasting the global
weights is one copy and every optimiser, proximal term, clipping or per-site rate is an operation on rows.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch

from fedfm.models.site_model import SiteModel


class ClientMatrix:
    """Theta and its gradient for K rows of a model.

    `columns`: name -> (first column, number of columns, shape). `body_columns [P]`: True where a column belongs to
    the body (heads and image adapters have a learning rate of their own).
    """

    def __init__(self, model: SiteModel, rows: int = 1):
        if rows > 1:  # rows of a matrix are not dense tensors; torch says so once, and nothing is to be done about it
            warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        example = next(model.body.parameters())
        slots = [(f"{n}.{a}", m, a, s) for n, m in model.rows().items() for a, s in m.shapes.items()]
        width = sum(math.prod(shape) for *_, shape in slots)
        self.model = model
        self.theta = torch.zeros(rows, width, dtype=example.dtype, device=example.device)
        self.grad = torch.zeros_like(self.theta)
        self.columns: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        first = 0
        for name, module, attribute, shape in slots:
            count = math.prod(shape)
            view = slice(first, first + count)
            parameter = module.bind(attribute, self.theta[:, view].view(rows, *shape))
            parameter.grad = self.grad[:, view].view(rows, *shape).view(parameter.shape)
            self.columns[name] = (first, count, shape)
            first += count
        in_body = [name.startswith("body.") for name, (_, n, _) in self.columns.items() for _ in range(n)]
        self.body_columns = torch.tensor(in_body, device=example.device)

    @torch.no_grad()
    def load(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write one site's tensors (all of them, named as in `columns`) into its row."""
        for name, (first, count, _) in self.columns.items():
            self.theta[row, first : first + count] = torch.from_numpy(np.ascontiguousarray(arrays[name])).flatten()

    def read(self, row: int) -> dict[str, np.ndarray]:
        """A copy of one site's tensors."""
        values = self.theta[row].detach().cpu().numpy()
        return {name: values[f : f + n].reshape(shape).copy() for name, (f, n, shape) in self.columns.items()}
