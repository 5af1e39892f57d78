"""Server optimisers: pure steps on a pseudo-gradient, the mean change Delta of a round.

Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", ICLR 2021,
https://arxiv.org/abs/2003.00295, algorithm 2:

    m <- b1 m + (1 - b1) Delta
    v <- v + Delta^2                              (Adagrad)
         v - (1 - b2) Delta^2 sign(v - Delta^2)   (Yogi)
         b2 v + (1 - b2) Delta^2                  (Adam)
    w <- w + eta m / (sqrt(v) + tau),             v_{-1} = tau^2, m_{-1} = 0

flwr 1.41 begins with v = 0, and its Adam multiplies eta with sqrt(1 - b2^(t+1)) / (1 - b1^(t+1)) in round t (its rounds
count from 1): `form = "flower"`. A tensor that nobody sent in a round keeps its moments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fedfm.arrays import Arrays, add_scaled
from fedfm.strategies.base import Round, State, Strategy, Update, key, two_level_mean

SecondMoment = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # (v, Delta^2, b2) -> v


def adagrad(v: np.ndarray, square: np.ndarray, beta2: float) -> np.ndarray:
    return v + square


def yogi(v: np.ndarray, square: np.ndarray, beta2: float) -> np.ndarray:
    return v - (1 - beta2) * square * np.sign(v - square)


def adam(v: np.ndarray, square: np.ndarray, beta2: float) -> np.ndarray:
    return beta2 * v + (1 - beta2) * square


@dataclass(frozen=True)
class Adaptive(Strategy):
    """What FedAdagrad, FedYogi and FedAdam share: all but the second moment.

    server_learning_rate: eta, of about the size of a good change of one weight. tau: adaptivity. form: "paper" or
    "flower", see the module.
    """

    averages: ClassVar[bool] = False  # the step's size is eta's, not the update's
    second_moment: ClassVar[SecondMoment] = staticmethod(adam)
    corrects_bias: ClassVar[bool] = False  # in the form of Flower
    server_learning_rate: float = key(0.01)
    beta1: float = key(0.9, high=0.999999)
    beta2: float = key(0.99, high=0.999999)
    tau: float = key(1e-3, low=1e-12)
    form: str = key("paper", choices=("paper", "flower"))

    def start(self, weights: Arrays) -> State:
        first = self.tau**2 if self.form == "paper" else 0.0
        return {
            "m": {name: np.zeros(value.shape) for name, value in weights.items()},
            "v": {name: np.full(value.shape, first) for name, value in weights.items()},
        }

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        change = two_level_mean(updates, round.domain_weights)
        m, v, step = dict(state["m"]), dict(state["v"]), {}
        for name, delta in change.items():
            m[name] = self.beta1 * m[name] + (1 - self.beta1) * delta
            v[name] = self.second_moment(v[name], np.square(delta), self.beta2)
            step[name] = m[name] / (np.sqrt(v[name]) + self.tau)
        eta = self.server_learning_rate * (self._correction(round.number) if self.form == "flower" else 1.0)
        return add_scaled(weights, step, eta), {"m": m, "v": v}

    def _correction(self, round: int) -> float:
        if not self.corrects_bias:
            return 1.0
        return float(np.sqrt(1 - self.beta2 ** (round + 1)) / (1 - self.beta1 ** (round + 1)))
