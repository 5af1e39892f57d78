"""Ten sites with a LoRA on one frozen layer: the federation of the experiments on rules for low-rank factors.

Data: the 1 797 handwritten digits (8 x 8) of scikit-learn, three fifths to train, a fifth each to choose the learning
rate and to test. Networks, all of whose own weights are random and frozen, as [out, in] and s = alpha / r = 2:

    linear:   logits = (W0 + s B A) x                 convex in the product B A
    mlp:      logits = H relu((W0 + s B A) x)         not convex

A round is some steps of SGD at every site, through the package's own local loop (`descend`), the passes and the server
half of its strategies. Sites hold one label each, or examples of all. Every method is tried at the same learning rates
and judged at that of the best mean accuracy on validation; test accuracies of the others are in the table, unused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits

from fedfm.arrays import Arrays
from fedfm.config import StrategyConfig
from fedfm.strategies import Round, SiteRows, Strategy, Update, make_strategy
from fedfm.training.descent import descend
from fedfm.training.optimizers import sgd

FEATURES, HIDDEN, CLASSES, SITES, SCALE = 64, 64, 10, 10, 2.0
RATES, STEPS, BATCH = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0), 5, 32
A, B, MERGED = "shared/layer.lora_A", "shared/layer.lora_B", "merged/layer.weight"


@dataclass(frozen=True)
class Digits:
    """x float64 [n, 64] in [0, 1], y int [n]; `parts`: rows of the training examples of each site."""

    x: np.ndarray
    y: np.ndarray
    validation: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]
    parts: list[np.ndarray]


@dataclass(frozen=True)
class Network:
    """frozen [out, 64], and head [10, out] or None."""

    frozen: torch.Tensor
    head: torch.Tensor | None

    def logits(self, x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, merged: torch.Tensor) -> torch.Tensor:
        """x [K, n, 64], a [K, r, 64], b [K, out, r], merged [out, 64] or 0 -> [K, n, 10]."""
        low_rank = torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))
        out = torch.add(x @ (self.frozen + SCALE * merged).T, low_rank, alpha=SCALE)
        return out if self.head is None else torch.relu(out) @ self.head.T


def draw_digits(seed: int, partition: str, sites: int = SITES) -> Digits:
    """`one-label`: site k has all examples of label k; `iid`: equal parts of all; `pooled`: one site."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng([seed, *b"digits"]).permutation(len(y))
    x, y, fifth = x[order] / 16, y[order], len(y) // 5
    train = np.arange(2 * fifth, len(y))
    if partition == "one-label":
        parts = [train[y[train] == label] for label in range(CLASSES)]
    else:
        parts = np.array_split(train, 1 if partition == "pooled" else sites)
    return Digits(x, y, (x[:fifth], y[:fifth]), (x[fifth : 2 * fifth], y[fifth : 2 * fifth]), parts)


def draw_network(seed: int, body: str) -> Network:
    draw = np.random.default_rng([seed, *b"network"])
    width = CLASSES if body == "linear" else HIDDEN
    frozen = torch.from_numpy(draw.standard_normal((width, FEATURES)) / np.sqrt(FEATURES))
    head = torch.from_numpy(draw.standard_normal((CLASSES, HIDDEN)) / np.sqrt(HIDDEN))
    return Network(frozen, None if body == "linear" else head)


def start(network: Network, rank: int, seed: int, strategy: Strategy) -> Arrays:
    """A uniform as LoRA draws it, B zero, and what the strategy sends beside them."""
    bound = 1 / np.sqrt(FEATURES)
    a = np.random.default_rng([seed, *b"lora"]).uniform(-bound, bound, (rank, FEATURES))
    weights = {A: a, B: np.zeros((len(network.frozen), rank))}
    return weights | strategy.more_weights(weights)


def merged_of(weights: Arrays) -> torch.Tensor:
    return torch.from_numpy(np.asarray(weights.get(MERGED, 0.0)))


def accuracy(network: Network, weights: Arrays, examples: tuple[np.ndarray, np.ndarray]) -> float:
    x, a, b = (torch.from_numpy(values)[None] for values in (examples[0], weights[A], weights[B]))
    return float((network.logits(x, a, b, merged_of(weights))[0].argmax(1).numpy() == examples[1]).mean())


def local_steps(
    network: Network, weights: Arrays, strategy: Strategy, number: int, batches: tuple, rate: float
) -> torch.Tensor:
    """The change of [A, B] at every site in a round, [K, P]. batches: x [steps, K, n, 64] and y [steps, K, n]."""
    x, y = batches
    sites, cut, merged = x.shape[1], weights[A].size, merged_of(weights)
    flat = torch.from_numpy(np.concatenate([weights[A].ravel(), weights[B].ravel()]))
    theta = flat.repeat(sites, 1).requires_grad_()
    theta.grad = torch.zeros_like(theta)
    rows = SiteRows(flat.repeat(sites, 1))

    def backward(step: int, active: int) -> None:
        a, b = theta[:, :cut].view(sites, *weights[A].shape), theta[:, cut:].view(sites, *weights[B].shape)
        logits = network.logits(x[step], a, b, merged)
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y[step].flatten(), reduction="sum")
        (losses / y.shape[2]).backward()

    for which in strategy.passes(number):
        mask = torch.cat([torch.full((weights[n].size,), which.trains(n.partition("/")[2])) for n in (A, B)])
        rates = torch.full_like(flat, rate)
        descend(theta, theta.grad, backward, [len(x)] * sites, rates, sgd(), strategy.correct, rows, mask)
    return strategy.finish(theta.detach(), rows)["delta"]


def play(
    name: str, network: Network, digits: Digits, rank: int, rate: float, seed: int, rounds: int, steps: int, batch: int
) -> tuple[Arrays | None, list[float]]:
    """Final weights, None where they left all bounds, and the aggregation error of each round."""
    strategy = make_strategy(StrategyConfig.model_validate({"name": name}))
    weights = start(network, rank, seed, strategy)
    state, errors, names = strategy.start(weights), [], [f"site-{k}" for k in range(len(digits.parts))]
    sizes = dict(zip(names, map(len, digits.parts), strict=True))
    for number in range(1, rounds + 1):
        draw = np.random.default_rng([seed, number, *b"batches"])  # the same examples for every strategy and rate
        chosen = np.stack([draw.choice(part, (steps, batch)) for part in digits.parts], axis=1)
        batches = torch.from_numpy(digits.x[chosen]), torch.from_numpy(digits.y[chosen])
        delta = local_steps(network, weights, strategy, number, batches, rate).numpy()
        if not np.abs(delta).max() < 1e6:
            return None, errors
        cut = weights[A].size
        ends = ({A: row[:cut].reshape(weights[A].shape), B: row[cut:].reshape(weights[B].shape)} for row in delta)
        updates = [
            Update(site, "d", sizes[site], {n: v for n, v in own.items() if strategy.shares(n, number)})
            for site, own in zip(names, ends, strict=True)
        ]
        about = Round(number, seed, dict.fromkeys(names, "d"), sizes, {})
        weights, state = strategy.aggregate(weights, iter(updates), state, about)
        errors.append(state["told"]["aggregation_error"])
    return weights, errors


def score(body: str, partition: str, method: str, rank: int, rate: float, seed: int, rounds: int) -> dict:
    """One run; `centralised` takes the same steps on as many examples of the pooled data."""
    pooled = method == "centralised"
    network, digits = draw_network(seed, body), draw_digits(seed, "pooled" if pooled else partition)
    name, batch = ("fedit", BATCH * SITES) if pooled else (method, BATCH)
    weights, errors = play(name, network, digits, rank, rate, seed, rounds, STEPS, batch)
    found = {"body": body, "partition": partition, "method": method, "rank": rank, "rate": rate, "seed": seed}
    if weights is None:
        return found | {"validation": 0.0, "test": 0.0, "error_min": np.nan, "error_max": np.nan}
    scores = {
        "validation": accuracy(network, weights, digits.validation),
        "test": accuracy(network, weights, digits.test),
    }
    return found | scores | {"error_min": min(errors), "error_max": max(errors)}


def sweep(file: Path, cells: Iterable[tuple[str, str, str, int]], seeds: int, rounds: int) -> pd.DataFrame:
    """All cells (body, partition, method, rank) at every rate and seed; those in the file are not run again."""
    keys = ["body", "partition", "method", "rank", "rate", "seed"]
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    done = {tuple(row[key] for key in keys) for row in rows}
    file.parent.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        for seed in range(seeds):
            rows += [score(*cell, rate, seed, rounds) for rate in RATES if (*cell, rate, seed) not in done]
            pd.DataFrame(rows).to_csv(file, index=False, lineterminator="\n", float_format="%.6g")
        tests = [row["test"] for row in rows if tuple(row[key] for key in keys[:4]) == cell]
        print(cell, "best test accuracy of any run", round(max(tests), 3), flush=True)
    return pd.DataFrame(rows)


def at_best_rate(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of each cell at the rate whose mean validation accuracy over seeds is best."""
    cell = ["body", "partition", "method", "rank"]
    means = runs.groupby([*cell, "rate"], as_index=False)["validation"].mean()
    best = means.loc[means.groupby(cell)["validation"].idxmax(), [*cell, "rate"]]
    return runs.merge(best, on=[*cell, "rate"])
