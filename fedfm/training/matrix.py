"""The client matrix: the trainable parameters of K sites are the rows of one matrix Theta [K, P].

Module parameters are views of Theta and their gradients views of one gradient matrix, so that broadcasting the global
weights is one copy and every optimiser, proximal term, clipping or per-site rate is an operation on rows.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping

import numpy as np
import torch
from torch import nn

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
        example = next(model.body.parameters())
        slots = [(f"{n}.{a}", m, a, s) for n, m in model.rows().items() for a, s in m.shapes.items()]
        self._slots = [(m, a) for _, m, a, _ in slots]
        width = sum(math.prod(shape) for *_, shape in slots)
        self.model = model
        self.theta = torch.zeros(rows, width, dtype=model.dtype, device=example.device)
        self.grad = torch.zeros_like(self.theta)
        self.columns: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        self.body_columns = torch.zeros(width, dtype=torch.bool, device=example.device)
        first = 0
        for name, _, _, shape in slots:
            count = math.prod(shape)
            self.body_columns[first : first + count] = name.startswith("body.")
            self.columns[name] = (first, count, shape)
            first += count
        self._rates: tuple[tuple[float, float], torch.Tensor] | None = None
        self._parameters: dict[int, list[nn.Parameter]] = {}
        self._ones = torch.ones_like(self.theta[:, 0])
        self.activate(rows)

    @property
    def rows(self) -> int:
        """How many sites it has room for."""
        return len(self.theta)

    def activate(self, rows: int) -> list[nn.Parameter]:
        """Let the first `rows` rows take part: the model's parameters from now on, in order of columns.

        They are leaves of their own for each number of rows, so that no gradient passes through a slice of them.
        """
        if rows not in self._parameters:
            made = []
            for (module, attribute), (first, count, shape) in zip(self._slots, self.columns.values(), strict=True):
                own, grad = (
                    table[:rows, first : first + count].view(rows, *shape) for table in (self.theta, self.grad)
                )
                parameter = module.bind(attribute, own)
                parameter.grad = grad.view(parameter.shape)
                made.append(parameter)
            self._parameters[rows] = made
        elif rows != self.bound:
            for (module, attribute), parameter in zip(self._slots, self._parameters[rows], strict=True):
                module.rebind(attribute, parameter)
        self.bound = self.model.active.rows = rows
        return self._parameters[rows]

    def differentiate(self, losses: torch.Tensor, rows: int) -> None:
        """Write the gradients of `losses [rows]`, each by its own of the first rows, into those of `grad`."""
        parameters = self._parameters[rows]
        found = torch.autograd.grad(losses, parameters, self._ones[:rows], allow_unused=True)
        parts = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
        if self.grad.device.type == "cpu":
            torch._foreach_copy_([p.grad for p in parameters], parts)
        else:  # one launch, where this would be one for each
            torch.cat([part.reshape(rows, -1) for part in parts], dim=1, out=self.grad[:rows])

    def rates(self, body: float, rest: float) -> torch.Tensor:
        """The learning rate of each column `[P]`; not to be written to."""
        if self._rates is None or self._rates[0] != (body, rest):
            table = torch.full_like(self.theta[0], rest)
            table[self.body_columns] = body
            self._rates = (body, rest), table
        return self._rates[1]

    @torch.no_grad()
    def load(self, row: int, arrays: Mapping[str, np.ndarray]) -> None:
        """Write some of a site's tensors, named as in `columns`, into its row."""
        self._put(arrays, self.theta[row])

    def flatten(self, arrays: Mapping[str, np.ndarray]) -> torch.Tensor:
        """Tensors named as in `columns` as one row `[P]`; zero where none is given."""
        flat = torch.zeros_like(self.theta[0])
        self._put(arrays, flat)
        return flat

    def runs(self, names: Container[str]) -> list[tuple[int, int, list[str]]]:
        """Columns of the tensors in `names`, those side by side as one: (first, behind the last, names in order)."""
        found: list[tuple[int, int, list[str]]] = []
        for name, (first, count, _) in self.columns.items():
            if name in names:
                start, _, run = found.pop() if found and found[-1][1] == first else (first, first, [])
                run.append(name)
                found.append((start, first + count, run))
        return found

    def _put(self, arrays: Mapping[str, np.ndarray], flat: torch.Tensor) -> None:
        """Write tensors into their columns of `flat [P]`; those side by side, which mostly is all, as one.

        Raises KeyError where one has no columns, ValueError where one has another size.
        """
        if unknown := arrays.keys() - self.columns.keys():
            raise KeyError(f"no column holds {sorted(unknown)[0]}")
        for first, last, names in self.runs(arrays):
            parts = [np.asarray(arrays[name]).reshape(self.columns[name][1]) for name in names]
            place = flat[first:last]
            if flat.device.type == "cpu":
                np.concatenate(parts, out=place.numpy(), casting="same_kind")
            else:
                place.copy_(torch.from_numpy(np.concatenate(parts)))

    def read(self, row: int) -> dict[str, np.ndarray]:
        """A copy of one site's tensors."""
        return self.unflatten(self.theta[row].detach().cpu().numpy().copy())

    def unflatten(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """A row `[P]` by tensor name, as views of it."""
        return {name: vector[f : f + n].reshape(shape) for name, (f, n, shape) in self.columns.items()}
