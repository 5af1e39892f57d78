"""FedAvg and FedProx on quadratics, where their fixed points are known in closed form.

Site i: F_i(x) = 1/2 (x - c_i)^T H_i (x - c_i), full gradient, tau_i SGD steps of rate eta, weight p_i = n_i / n.
The local steps run through the real `descend`, the mean through the real `aggregate`, until nothing moves.

After tau steps from w a site is at w - (I - (I - eta S)^tau) S^-1 H (w - c), with S = H for FedAvg and S = H + mu I
for FedProx (the anchor w is where it starts, so the term adds mu to every curvature). With R_i the factor before
(w - c_i), a fixed point of the mean solves sum p_i R_i (w - c_i) = 0:

    w* = (sum_i p_i R_i)^-1 sum_i p_i R_i c_i,      R_i = (I - (I - eta S_i)^tau_i) S_i^-1 H_i
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from strategy_helpers import aggregate, strategy_named
from torch import Tensor

from fedfm.strategies import Strategy, Update
from fedfm.training.descent import descend
from fedfm.training.optimizers import sgd

SITES, SIZE, ETA = 4, 5, 0.08
TAUS = (9, 5, 2, 1)  # falling, as `descend` wants its rows
EXAMPLES = (10, 300, 40, 150)
P = np.array(EXAMPLES) / sum(EXAMPLES)
TOLERANCE = 1e-10


def make_sites(seed: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """H [sites, n, n], symmetric with eigenvalues from 0.5 to 3, and c [sites, n]."""
    draw = np.random.default_rng(seed)
    turns = [np.linalg.qr(draw.standard_normal((SIZE, SIZE)))[0] for _ in range(SITES)]
    curvatures = np.array([q @ np.diag(draw.uniform(0.5, 3.0, SIZE)) @ q.T for q in turns])
    return curvatures, draw.standard_normal((SITES, SIZE))


H, C = make_sites()


def closed_form(mu: float = 0.0, taus: tuple[int, ...] = TAUS) -> np.ndarray:
    eye = np.eye(SIZE)
    weighted, right = np.zeros((SIZE, SIZE)), np.zeros(SIZE)
    for p, h, c, tau in zip(P, H, C, taus, strict=True):
        s = h + mu * eye
        r = (eye - np.linalg.matrix_power(eye - ETA * s, tau)) @ np.linalg.inv(s) @ h
        weighted += p * r
        right += p * r @ c
    return np.linalg.solve(weighted, right)


def optimum() -> np.ndarray:
    """Where the federation's loss is least: (sum p_i H_i)^-1 sum p_i H_i c_i."""
    return np.linalg.solve(np.einsum("i,ijk->jk", P, H), np.einsum("i,ijk,ik->j", P, H, C))


def fixed_point(
    strategy: Strategy, correct: Callable | None = None, taus: tuple[int, ...] = TAUS, rounds: int = 800
) -> np.ndarray:
    """Where the rounds of a strategy end, from 0. `correct`: another site half in place of the strategy's."""
    curvature, centre = torch.from_numpy(H), torch.from_numpy(C)
    rate = torch.full((SIZE,), ETA, dtype=torch.float64)
    weights = {"shared/x": np.zeros(SIZE)}
    for _ in range(rounds):
        theta = torch.from_numpy(np.tile(weights["shared/x"], (SITES, 1)))
        grad = torch.zeros_like(theta)

        def backward(step: int, active: int, theta: Tensor = theta, grad: Tensor = grad) -> None:
            off = (theta - centre)[:active]
            grad[:active] = torch.einsum("kij,kj->ki", curvature[:active], off)

        descend(theta, grad, backward, taus, rate, sgd(), correct or strategy.correct)
        updates = [
            Update(f"s{i}", "d", n, {"shared/x": theta[i].numpy() - weights["shared/x"]})
            for i, n in enumerate(EXAMPLES)
        ]
        weights = aggregate(strategy, weights, updates)
    return weights["shared/x"]


def test_fedavg_ends_at_its_fixed_point_which_is_not_the_optimum():
    found = fixed_point(strategy_named("fedavg"))
    assert np.abs(found - closed_form()).max() < TOLERANCE
    assert np.abs(found - optimum()).max() > 1e-2  # unequal steps: biased, and known to be


def test_with_one_step_each_fedavg_ends_at_the_optimum():
    found = fixed_point(strategy_named("fedavg"), taus=(1,) * SITES)
    assert np.abs(found - optimum()).max() < TOLERANCE


@pytest.mark.parametrize("mu", [0.1, 1.0, 4.0])
def test_fedprox_ends_at_its_fixed_point(mu):
    found = fixed_point(strategy_named("fedprox", proximal_mu=mu))
    assert np.abs(found - closed_form(mu)).max() < TOLERANCE
    assert np.abs(found - closed_form()).max() > 1e-4  # not FedAvg's


def test_the_server_learning_rate_moves_the_way_and_not_the_end():
    found = fixed_point(strategy_named("fedprox", proximal_mu=1.0, server_learning_rate=0.5), rounds=1600)
    assert np.abs(found - closed_form(1.0)).max() < TOLERANCE


def test_without_a_proximal_term_fedprox_is_fedavg_to_the_bit():
    none = fixed_point(strategy_named("fedprox", proximal_mu=0.0), rounds=20)
    assert np.array_equal(none, fixed_point(strategy_named("fedavg"), rounds=20))


def unsquared(mu: float) -> Callable:
    """The mutant: the gradient of mu ||w - w0|| instead of mu/2 ||w - w0||^2, whose pull does not shrink near w0."""

    def correct(theta: Tensor, grad: Tensor, received: Tensor, site_state: Tensor | None) -> Tensor:
        off = theta - received
        return grad + mu * off / off.norm(dim=1, keepdim=True).clamp_min(1e-300)

    return correct


@pytest.mark.parametrize("mu", [0.1, 1.0])
def test_the_unsquared_proximal_term_is_caught(mu):
    """The same road with the mutant at the sites does not end where FedProx does, by a million tolerances and more."""
    strategy = strategy_named("fedprox", proximal_mu=mu)
    assert np.abs(fixed_point(strategy, unsquared(mu)) - closed_form(mu)).max() > 1e-3


def test_a_dropped_size_of_the_sites_is_caught():
    """With equal p_i the same formula gives another point: the tests above would see a mean without n_k."""
    flat = np.array(EXAMPLES) * 0 + 1 / SITES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.P", flat)
        unweighted = closed_form()
    assert np.abs(unweighted - closed_form()).max() > 1e-2
