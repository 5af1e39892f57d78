"""FedNova's fixed point, AFL's minimax, q-FedAvg's identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from strategy_helpers import aggregate, round_of, strategy_named
from test_quadratics import ETA, EXAMPLES, SITES, SIZE, TAUS, TOLERANCE, C, H, P, closed_form

from fedfm.config import load_config
from fedfm.errors import ConfigError
from fedfm.strategies import Update, check_strategy
from fedfm.strategies.afl import to_simplex
from fedfm.strategies.fednova import effective_steps
from fedfm.training.descent import descend
from fedfm.training.optimizers import sgd

WORDS, TEXTS = {"task": "token-classification"}, {"task": "text-classification"}


def fixed_point(name: str, taus: tuple[int, ...], momentum: float = 0.0, rounds: int = 1200) -> np.ndarray:
    curvature, centre = torch.from_numpy(H), torch.from_numpy(C)
    weights = {"shared/x": np.zeros(SIZE)}
    strategy = strategy_named(name, **({"momentum": momentum} if name == "fednova" else {}))
    for _ in range(rounds):
        theta = torch.from_numpy(np.tile(weights["shared/x"], (SITES, 1)))
        grad = torch.zeros_like(theta)

        def backward(step: int, active: int, theta=theta, grad=grad) -> None:
            grad[:active] = torch.einsum("kij,kj->ki", curvature[:active], (theta - centre)[:active])

        descend(theta, grad, backward, taus, torch.full((SIZE,), ETA, dtype=torch.float64), sgd(momentum))
        updates = [
            Update(f"s{k}", "d", n, {"shared/x": theta[k].numpy() - weights["shared/x"]}, {"steps": taus[k]})
            for k, n in enumerate(EXAMPLES)
        ]
        weights = aggregate(strategy, weights, updates)
    return weights["shared/x"]


def nova_closed_form(taus: tuple[int, ...]) -> np.ndarray:
    """(sum (p_i / tau_i) M_i)^-1 sum (p_i / tau_i) M_i c_i,  M_i = I - (I - eta H_i)^tau_i."""
    left, right = np.zeros((SIZE, SIZE)), np.zeros(SIZE)
    for p, h, c, tau in zip(P, H, C, taus, strict=True):
        m = np.eye(SIZE) - np.linalg.matrix_power(np.eye(SIZE) - ETA * h, tau)
        left, right = left + p / tau * m, right + p / tau * m @ c
    return np.linalg.solve(left, right)


def test_fednova_ends_at_its_fixed_point():
    found = fixed_point("fednova", TAUS)
    assert np.abs(found - nova_closed_form(TAUS)).max() < TOLERANCE
    assert np.abs(found - closed_form()).max() > 1e-2  # not FedAvg's


def test_with_equal_steps_fednova_is_fedavg():
    taus = (4,) * SITES
    assert np.abs(fixed_point("fednova", taus, rounds=30) - fixed_point("fedavg", taus, rounds=30)).max() < 1e-12


@pytest.mark.parametrize("tau", [1, 2, 7])
@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 0.2)])
def test_the_norm_of_a_by_playing_the_optimiser(tau, momentum, decay):
    """With gradients of 1, a step size of 1 and the pull towards the start, the way is ||a||_1."""
    position = velocity = 0.0
    for _ in range(tau):
        velocity = momentum * velocity + 1
        position += velocity - decay * position
    assert effective_steps(tau, momentum, decay) == pytest.approx(position, abs=1e-12)


def test_fednova_must_be_told_of_the_sites_momentum():
    data = {"strategy": {"name": "fednova"}, "local": {"optimizer": "sgd", "momentum": 0.9}}
    with pytest.raises(ConfigError, match=r"cannot see the state of the sites' optimisers"):
        load_config(data, [], (check_strategy,))
    load_config(data, ["strategy.momentum=0.9"], (check_strategy,))
    (sentence,) = strategy_named("fednova").advice(load_config({}))
    assert "exact for SGD" in sentence
    sgd = {"strategy": {"name": "fednova"}, "local": {"optimizer": "sgd"}}
    assert strategy_named("fednova").advice(load_config(sgd)) == []
    own = "domains.ner.local.clip-norm=1.0"
    (sentence,) = strategy_named("fednova").advice(
        load_config({**sgd, "domains": {"ner": WORDS, "finance": TEXTS}}, [own])
    )
    assert sentence.endswith("knows of no clip-norm and no weight-decay, which ner has")


def test_afl_ends_at_the_minimax_of_two_quadratics():
    """F_1 = (x - 0)^2 + 1, F_2 = 2 (x - 3)^2: the least worst loss is where they cross, or where one rests."""
    losses = (lambda x: x**2 + 1, lambda x: 2 * (x - 3) ** 2)
    slopes = (lambda x: 2 * x, lambda x: 4 * (x - 3))
    oracle = minimize(lambda z: z[1], (0.0, 9.0), constraints=[
        {"type": "ineq", "fun": lambda z, f=f: z[1] - f(z[0])} for f in losses]).x[0]  # fmt: skip
    strategy = strategy_named("afl", ascent_rate=0.02, over="sites")
    weights = {"shared/x": np.array([0.0])}
    state, tail = strategy.start(weights), []
    state["first"] = {"s0": 1.0, "s1": 1.0}  # losses of one task: compared as they are
    for number in range(6000):
        x = float(weights["shared/x"][0])
        updates = [
            Update(f"s{k}", "d", 5, {"shared/x": np.array([-0.02 * slopes[k](x)])}, {"start-loss": losses[k](x)})
            for k in (0, 1)
        ]
        weights, state = strategy.aggregate(weights, iter(updates), state, round_of(updates, number=number + 1))
        tail.append(x)
    assert np.mean(tail[-2000:]) == pytest.approx(oracle, abs=2e-2)


def test_the_projection_is_the_nearest_point_of_the_simplex():
    draw = np.random.default_rng(0)
    for _ in range(30):
        point = draw.standard_normal(4) * 2
        found = to_simplex(point)
        assert found.min() >= 0
        assert found.sum() == pytest.approx(1)
        others = draw.dirichlet(np.ones(4), 500)
        assert np.square(others - point).sum(axis=1).min() >= np.square(found - point).sum() - 1e-12


def test_q_of_zero_is_the_uniform_mean():
    draw = np.random.default_rng(1)
    updates = [Update(f"s{k}", "d", n, {"shared/x": draw.standard_normal(4)}, {"start-loss": 1.0 + k})
               for k, n in enumerate((5, 500, 50))]  # fmt: skip
    weights = {"shared/x": np.zeros(4)}
    new = aggregate(strategy_named("q-fedavg", q=0.0, lipschitz=7.0), weights, updates)
    assert np.allclose(new["shared/x"], np.mean([u.delta["shared/x"] for u in updates], axis=0), atol=1e-12)
    more = aggregate(strategy_named("q-fedavg", q=5.0), weights, updates)["shared/x"]
    last = updates[2].delta["shared/x"]
    assert more @ last / np.linalg.norm(more) > new["shared/x"] @ last / np.linalg.norm(new["shared/x"])
