"""Strategies whose sites keep something, on the quadratics of test_quadratics.py: where they end is known.

SCAFFOLD   at rest every y_k = x, so grad F_k(x) = c_k - c for all k; sum_k p_k (c_k - c) = 0 gives
           sum_k p_k grad F_k(x) = 0: the weighted optimum, for equal and for unequal steps.
FedDyn     at rest w_k = x and so g_k = grad F_k(x), and x = mean w_k - h / a gives h = mean g_k = 0: the optimum of
           the uniform mean.
Ditto      v_k = (H_k + lambda I)^-1 (H_k c_k + lambda w), w the fixed point of FedAvg.
pFedMe     theta_k(w) as v_k; with inner solutions that are exact the mean of w - theta_k(w) vanishes:
           sum_k p_k (I - lambda (H_k + lambda I)^-1) w = sum_k p_k (H_k + lambda I)^-1 H_k c_k.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy_helpers import round_of, strategy_named
from test_quadratics import ETA, EXAMPLES, SITES, SIZE, TAUS, TOLERANCE, C, H, P, closed_form, optimum
from torch import Tensor

from fedfm.strategies import SiteRows, Strategy, Update, scaffold
from fedfm.training.descent import descend
from fedfm.training.local_round import MODELS
from fedfm.training.optimizers import sgd

EYE = np.eye(SIZE)


def play(strategy: Strategy, taus: tuple[int, ...] = TAUS, rounds: int = 1500) -> tuple[np.ndarray, dict[str, Tensor]]:
    """Where the rounds end, and what each site keeps then; both halves are the real ones."""
    curvature, centre = torch.from_numpy(H), torch.from_numpy(C)
    weights = {"shared/x": np.zeros(SIZE)}
    state = strategy.start(weights)
    kept: dict[str, Tensor] = {}
    for number in range(1, rounds + 1):
        theta = torch.from_numpy(np.tile(weights["shared/x"], (SITES, 1)))
        fresh = {n: theta.clone() if n in MODELS else torch.zeros_like(theta) for n in strategy.keeps}
        sent = {name: torch.from_numpy(state[name]["shared/x"]).expand_as(theta) for name in strategy.sends}
        rows = SiteRows(theta.clone(), fresh | kept, sent)
        for which in strategy.passes(number):
            rows.which = which
            point = rows.kept["personal"] if which.personal else theta
            grad = torch.zeros_like(point)

            def backward(step: int, active: int, point: Tensor = point, grad: Tensor = grad) -> None:
                grad[:active] = torch.einsum("kij,kj->ki", curvature[:active], (point - centre)[:active])

            rate = torch.full((SIZE,), ETA, dtype=torch.float64)
            descend(point, grad, backward, taus, rate, sgd(), strategy.correct, rows)
        leaves = strategy.finish(theta, rows)
        kept = {name: value for name, value in rows.kept.items() if not name.startswith("_")}
        updates = [
            Update(
                f"s{i}", "d", n, {"shared/x": leaves["delta"][i].numpy()},
                extra={what: {"shared/x": leaves[what][i].numpy()} for what in strategy.returns},
            )
            for i, n in enumerate(EXAMPLES)
        ]  # fmt: skip
        weights, state = strategy.aggregate(weights, iter(updates), state, round_of(updates, number=number))
    return weights["shared/x"], kept


@pytest.mark.parametrize("taus", [(5,) * SITES, TAUS], ids=["equal steps", "unequal steps"])
def test_scaffold_ends_at_the_optimum(taus):
    found, kept = play(strategy_named("scaffold"), taus)
    assert np.abs(found - optimum()).max() < TOLERANCE
    slopes = np.einsum("kij,kj->ki", H, found - C)
    assert np.abs(kept["control"].numpy() - slopes).max() < 1e-8  # c_k is the site's gradient there


def test_weights_of_x_and_uniform_control_variates_are_caught(monkeypatch):
    """The trap: x by examples and c uniformly ends elsewhere."""
    monkeypatch.setattr(scaffold, "registered_shares", lambda round: lambda update, name: 1 / SITES)
    found, _ = play(strategy_named("scaffold"), (5,) * SITES)
    assert np.abs(found - optimum()).max() > 1e-2


@pytest.mark.parametrize("taus", [(5,) * SITES, TAUS], ids=["equal steps", "unequal steps"])
def test_feddyn_ends_at_the_uniform_optimum(taus):
    found, _ = play(strategy_named("feddyn", alpha=0.5), taus, rounds=2500)
    uniform = np.linalg.solve(H.mean(axis=0), np.einsum("kij,kj->i", H, C) / SITES)
    assert np.abs(found - uniform).max() < TOLERANCE


def pulled(k: int, w: np.ndarray, strength: float) -> np.ndarray:
    return np.linalg.solve(H[k] + strength * EYE, H[k] @ C[k] + strength * w)


def test_ditto_is_fedavg_with_a_pulled_model_beside_it():
    found, kept = play(strategy_named("ditto", pull_to_global=0.7))
    assert np.abs(found - closed_form()).max() < TOLERANCE
    for k in range(SITES):
        assert np.abs(kept["personal"][k].numpy() - pulled(k, found, 0.7)).max() < TOLERANCE


def test_pfedme_ends_at_the_optimum_of_the_envelopes():
    strength, steps = 2.0, 120  # enough steps for the inner problem, and one step of w_k a round
    strategy = strategy_named("pfedme", envelope=strength, inner_steps=steps, server_learning_rate=2.0)
    found, kept = play(strategy, (steps,) * SITES, rounds=160)
    left, right = np.zeros((SIZE, SIZE)), np.zeros(SIZE)
    for k in range(SITES):
        inverse = np.linalg.inv(H[k] + strength * EYE)
        left += P[k] * (EYE - strength * inverse)
        right += P[k] * inverse @ H[k] @ C[k]
    assert np.abs(found - np.linalg.solve(left, right)).max() < TOLERANCE
    for k in range(SITES):
        assert np.abs(kept["personal"][k].numpy() - pulled(k, found, strength)).max() < TOLERANCE
