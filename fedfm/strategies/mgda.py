"""MGDA between domains.

Désidéri, "Multiple-gradient descent algorithm (MGDA) for multiobjective optimization", 2012,
https://doi.org/10.1016/j.crma.2012.03.014; in federations Hu, Shaloudegi, Zhang, Yu, "Federated Learning Meets
Multi-Objective Optimization", 2020, https://arxiv.org/abs/2006.11489, which divides the g_d by their norms first:

    lambda = argmin over the simplex of || sum_d lambda_d g_d ||^2
    server:   w^{t+1} = w^t + eta_s sum_d lambda_d g_d

The point of least norm g has <g_d, g> >= ||g||^2 for all d: a step that helps every domain, or none where none does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import nnls

from fedfm.strategies.base import Round, Summary, key
from fedfm.strategies.conflicts import BetweenDomains, scaled


@dataclass(frozen=True)
class MGDA(BetweenDomains):
    """The least common step. `normalise`: domains' changes are divided by their norms first, then by their mean's."""

    summary: ClassVar[Summary] = Summary("domains", "Hu 2020, arXiv:2006.11489", "all sites", "none", "1x")
    normalise: bool = key(False)

    def combine(self, rows: np.ndarray, round: Round) -> np.ndarray:
        own, size = scaled(rows)
        norms = np.linalg.norm(own, axis=1)
        if self.normalise and norms.min() > 0:
            own, size = own / norms[:, None], size * float(norms.mean())
        return size * (least_norm_mixture(own @ own.T) @ own)


def least_norm_mixture(products: np.ndarray) -> np.ndarray:
    """lambda `[D]` in the simplex of the least lambda^T G lambda, G `[D, D]` the scalar products of the rows.

    As nonnegative least squares: lambda = y / sum y for min_y ||R y||^2 + (sum y - 1)^2 with R^T R = G; the factor by
    which y falls short of the simplex is the same for all.
    """
    values, vectors = np.linalg.eigh(products)
    root = np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T
    table = np.vstack([root, np.ones(len(products))])
    found, _ = nnls(table, np.append(np.zeros(len(products)), 1.0))
    return found / found.sum()
