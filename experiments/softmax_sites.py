"""Sites with softmax regressions: the convex federation of the experiments on stragglers, fairness and attacks.

Synthetic(a, b) of Shamir, Srebro, Zhang (2014) as Li et al. (2020) use it, drawn here, not downloaded: site k has
W_k ~ N(u_k, 1), b_k ~ N(u_k, 1), u_k ~ N(0, a); x ~ N(v_k, Sigma), v_k ~ N(B_k, 1), B_k ~ N(0, b), Sigma diagonal with
j^-1.2; y = argmax(W_k x + b_k); sizes log-normal(4, 2) + 50, cut at `largest`. A tenth of each site is for testing, or
`tests` examples beside the others: what is asked is how far accuracies of sites differ, and of five examples each they
differ by chance alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfm.arrays import Arrays
from fedfm.strategies import SiteRows, Strategy, Update

FEATURES, CLASSES = 60, 10


@dataclass(frozen=True)
class Site:
    """Training and test examples: x float64 [n, 60], y int [n]."""

    name: str
    x: np.ndarray
    y: np.ndarray
    test_x: np.ndarray
    test_y: np.ndarray


def draw_sites(
    seed: int, sites: int, a: float = 1.0, b: float = 1.0, largest: int = 1000, tests: int = 0
) -> list[Site]:
    """Synthetic(a, b) sites."""
    draw = np.random.default_rng([seed, *b"synthetic"])
    scale = np.sqrt(np.arange(1, FEATURES + 1) ** -1.2)
    found = []
    for k in range(sites):
        size = min(int(draw.lognormal(4, 2)) + 50, largest)
        u, shift = draw.normal(0, np.sqrt(a)), draw.normal(0, np.sqrt(b))
        weight, bias = draw.normal(u, 1, (FEATURES, CLASSES)), draw.normal(u, 1, CLASSES)
        x = draw.normal(shift, 1, FEATURES) + scale * draw.standard_normal((size + tests, FEATURES))
        y = (x @ weight + bias).argmax(axis=1)
        cut = tests or max(size // 10, 1)
        found.append(Site(f"site-{k:03d}", x[cut:], y[cut:], x[:cut], y[:cut]))
    return found


def start() -> Arrays:
    return {"shared/x": np.zeros((FEATURES + 1) * CLASSES)}


def loss_and_gradient(theta: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Mean cross-entropy and its gradient, of theta [(60 + 1) * 10]."""
    weight = theta.reshape(FEATURES + 1, CLASSES)
    logits = x @ weight[:-1] + weight[-1]
    logits -= logits.max(axis=1, keepdims=True)
    chances = np.exp(logits)
    chances /= chances.sum(axis=1, keepdims=True)
    rows = np.arange(len(y))
    loss = float(-np.log(chances[rows, y] + 1e-12).mean())
    chances[rows, y] -= 1
    chances /= len(y)
    return loss, np.concatenate([(x.T @ chances).ravel(), chances.sum(axis=0)])


def train(
    site: Site,
    weights: Arrays,
    strategy: Strategy,
    draw: np.random.Generator,
    rate: float,
    epochs: float,
    batch: int = 10,
) -> Update:
    """Local SGD under the strategy's own site half; `epochs` may end within one."""
    received = weights["shared/x"]
    theta, steps = received.copy(), max(1, round(epochs * len(site.y) / batch))
    begun = loss_and_gradient(received, site.x, site.y)[0] if strategy.starts_with_loss else 0.0
    order: list[int] = []
    rows = SiteRows(received)
    for _ in range(steps):
        if len(order) < batch:
            order += draw.permutation(len(site.y)).tolist()
        chosen, order = order[:batch], order[batch:]
        _, gradient = loss_and_gradient(theta, site.x[chosen], site.y[chosen])
        theta -= rate * strategy.correct(theta, gradient, received, rows)
    metrics = {"steps": float(steps), "start-loss": begun, "loss": begun}
    return Update(site.name, "d", len(site.y), {"shared/x": theta - received}, metrics)


def accuracies(weights: Arrays, sites: list[Site]) -> np.ndarray:
    """Test accuracy of each site."""
    weight = weights["shared/x"].reshape(FEATURES + 1, CLASSES)
    return np.array([((s.test_x @ weight[:-1] + weight[-1]).argmax(1) == s.test_y).mean() for s in sites])


def pooled_accuracy(weights: Arrays, sites: list[Site]) -> float:
    """Over all test examples."""
    return float(np.average(accuracies(weights, sites), weights=[len(s.test_y) for s in sites]))


def pooled_loss(weights: Arrays, sites: list[Site]) -> float:
    """Mean training loss over all examples."""
    losses = [loss_and_gradient(weights["shared/x"], s.x, s.y)[0] for s in sites]
    return float(np.average(losses, weights=[len(s.y) for s in sites]))
