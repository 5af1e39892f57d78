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

from fedfm.models.rows import Whole
from fedfm.models.site_model import SiteModel


class ClientMatrix:
    """Theta and its gradient for K rows of a model; one row where it trains parts that know no rows (`Whole`).

    What trains is float32 or float64, also where the frozen body is bfloat16.
    `columns`: name -> (first column, number of columns, shape). `body_columns [P]`: True where a column belongs to
    the body (heads and image adapters have a learning rate of their own).
    """

    def __init__(self, model: SiteModel, rows: int = 1):
        rows = 1 if any(isinstance(module, Whole) for module in model.rows().values()) else rows
        if rows > 1:  # rows of a matrix are not dense tensors; torch says so once, and nothing is to be done about it
            warnings.filterwarnings("ignore", message="grad and param do not obey the gradient layout contract")
        example = next(model.body.parameters())
        slots = [(f"{n}.{a}", m, a, s) for n, m in model.rows().items() for a, s in m.shapes.items()]
        width = sum(math.prod(shape) for *_, shape in slots)
        self.model = model
        self.theta = torch.zeros(rows, width, dtype=model.dtype, device=example.device)
        self.grad = torch.zeros_like(self.theta)
        self.columns: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        self.body_columns = torch.zeros(width, dtype=torch.bool, device=example.device)
        first = 0
        for name, module, attribute, shape in slots:
            count = math.prod(shape)
            view = slice(first, first + count)
            self.body_columns[view] = name.startswith("body.")
            parameter = module.bind(attribute, self.theta[:, view].view(rows, *shape))
            parameter.grad = self.grad[:, view].view(rows, *shape).view(parameter.shape)
            self.columns[name] = (first, count, shape)
            first += count

    @property
    def rows(self) -> int:
        """How many sites it has room for."""
        return len(self.theta)

    @torch.no_grad()
    def load(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write some of a site's tensors, named as in `columns`, into its row."""
        flat = self.theta[row]
        for name, array in arrays.items():
            first, count, _ = self.columns[name]
            flat[first : first + count] = torch.from_numpy(np.array(array, order="C")).flatten()

    @torch.no_grad()
    def spread(self, row: int, rows: int) -> None:
        """Copy one row to the first `rows` rows."""
        self.theta[:rows] = self.theta[row].clone()

    def flatten(self, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Tensors named as in `columns` as one row `[P]`; zero where none is given."""
        flat = torch.zeros_like(self.theta[0])
        for name, array in arrays.items():
            first, count, _ = self.columns[name]
            flat[first : first + count] = torch.from_numpy(np.array(array, order="C")).flatten()
        return flat

    def read(self, row: int) -> dict[str, np.ndarray]:
        """A copy of one site's tensors."""
        return self.unflatten(self.theta[row].detach().cpu().numpy().copy())

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """A row `[P]` by tensor name, as views of it."""
        return {name: vector[f : f + n].reshape(shape) for name, (f, n, shape) in self.columns.items()}
