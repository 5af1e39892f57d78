"""CAGrad between domains.

Liu, Liu, Jin, Stone, Liu, "Conflict-Averse Gradient Descent for Multi-task Learning", NeurIPS 2021,
https://arxiv.org/abs/2110.14048, on the domains' mean changes g_d with mean g_0:

    max_g min_d <g_d, g>   subject to ||g - g_0|| <= c ||g_0||
    dual:     lambda = argmin over the simplex of <g_lambda, g_0> + c ||g_0|| ||g_lambda||
              with g_lambda = sum_d lambda_d g_d
    server:   w^{t+1} = w^t + eta_s (g_0 + c ||g_0|| / ||g_lambda|| g_lambda)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import BetweenDomains, scaled


@dataclass(frozen=True)
class CAGrad(BetweenDomains):
    """The step near the mean that is best for the domain it is worst for. `c`: how far from the mean; 0 is the mean."""

    summary: ClassVar[Summary] = Summary("domains", "Liu 2021, arXiv:2110.14048", "all sites", "none", "1x")
    averages: ClassVar[bool] = False  # of equal changes it makes 1 + c times them
    c: float = key(0.5, high=1.0)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        own, size = scaled(rows)
        products, mean = own @ own.T, own.mean(axis=0)
        radius = self.c * float(np.linalg.norm(mean))
        if radius == 0 or len(own) == 1:
            return size * mean
        start = np.full(len(own), 1 / len(own))

        def dual(mixture: np.ndarray) -> float:
            return float(mixture @ products @ start + radius * np.sqrt(max(mixture @ products @ mixture, 1e-24)))

        simplex = {"type": "eq", "fun": lambda mixture: mixture.sum() - 1}
        solved = minimize(
            dual, start, method="SLSQP", bounds=[(0, 1)] * len(own), constraints=simplex, options={"ftol": 1e-14}
        )
        mixed = np.clip(solved.x, 0, 1) @ own
        length = float(np.linalg.norm(mixed))
        return size * (mean + radius / length * mixed) if length > 1e-12 else size * mean
