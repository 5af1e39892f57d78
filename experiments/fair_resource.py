"""Does q-FedAvg make the accuracies of unlike sites more alike, and what does that cost in the mean? (H7)

Question    100 sites of Synthetic(1, 1): how do mean, worst tenth and variance over sites of the test accuracy change
            with q, once the federation has converged?
Source      Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020,
            https://arxiv.org/abs/1905.10497, table 1: q = 1 takes the variance from 724 to 472 at 1.8 points of mean.
            10 sites a round, drawn by their sizes, learning rate 0.1, batches of 10, one epoch, L = 1 / 0.1, as there;
            8 000 rounds instead of 20 000, sites of at most 300 examples, and 100 fresh examples a site for testing
Command     python experiments/fair_resource.py [--seeds 5] [--rounds 8000]; a finished run is not run again
Time        some 30 minutes on one busy core
Expected    q = 0 is the unweighted mean of the sites' changes (`fedavg` of equal examples) to 1e-10; q = 1 has at most
            0.8 of the variance of q = 0, a better worst tenth, and at most 3 points less of mean

Leaves fair_resource/ with runs.csv (a row a run and every hundredth round), fair_resource.csv (a row a q, means over
seeds of the last five of these), criteria.csv and fair_resource.png. A larger q takes shorter steps (h grows), so an
unconverged one looks unfair only because it is late: criteria.csv says how far the loss still moved, and what q = 0 had
at the loss where q = 1 ended. Server rule of the package; the local steps of a round's sites are made side by side.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from softmax_sites import CLASSES, FEATURES, Site, accuracies, draw_sites, loss_and_gradient, start

from fedfm.arrays import Arrays
from fedfm.config import StrategyConfig
from fedfm.strategies import Round, Update, make_strategy

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results" / "fair_resource"
SITES, ASKED, RATE, BATCH, EVERY, LAST = 100, 10, 0.1, 10, 100, 5
QS = (0.0, 0.1, 1.0, 5.0)
WORST = SITES // 10


def descend_together(asked: list[Site], received: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """One epoch of SGD at each site, from `received` [P]; sites stand in order of falling size. Returns [K, P]."""
    steps = [len(site.y) // BATCH for site in asked]
    theta = np.tile(received, (len(asked), 1)).reshape(len(asked), FEATURES + 1, CLASSES)
    x = np.ones((len(asked), steps[0] * BATCH, FEATURES + 1))  # the last column is that of the bias
    y = np.zeros((len(asked), steps[0] * BATCH, CLASSES))
    for k, (site, count) in enumerate(zip(asked, steps, strict=True)):
        order = draw.permutation(len(site.y))[: count * BATCH]
        x[k, : len(order), :-1], y[k, : len(order)] = site.x[order], np.eye(CLASSES)[site.y[order]]
    for step in range(steps[0]):
        active, rows = sum(step < count for count in steps), slice(step * BATCH, (step + 1) * BATCH)
        chances = x[:active, rows] @ theta[:active]
        chances -= chances.max(axis=2, keepdims=True)
        np.exp(chances, out=chances)
        chances /= chances.sum(axis=2, keepdims=True)
        chances -= y[:active, rows]
        theta[:active] -= RATE / BATCH * (x[:active, rows].transpose(0, 2, 1) @ chances)
    return theta.reshape(len(asked), -1)


def round_updates(sites: list[Site], weights: Arrays, seed: int, number: int) -> list[Update]:
    """What the sites of a round send; the same sites and orders for every q."""
    draw = np.random.default_rng([seed, number, *b"round"])
    sizes = np.array([len(site.y) for site in sites])
    drawn = draw.choice(len(sites), ASKED, replace=False, p=sizes / sizes.sum())
    asked = sorted((sites[k] for k in drawn), key=lambda site: (-len(site.y), site.name))
    received = weights["shared/x"]
    ends = descend_together(asked, received, draw)
    found = []
    for site, end in zip(asked, ends, strict=True):
        loss = loss_and_gradient(received, site.x, site.y)[0]
        metrics = {"steps": float(len(site.y) // BATCH), "start-loss": loss, "loss": loss}
        found.append(Update(site.name, "d", len(site.y), {"shared/x": end - received}, metrics))
    return sorted(found, key=lambda update: update.site)


def play(q: float, sites: list[Site], seed: int, rounds: int) -> list[dict]:
    """Scores after every hundredth round."""
    chosen = {"name": "q-fedavg", "q": q, "lipschitz": 1 / RATE}
    strategy = make_strategy(StrategyConfig.model_validate(chosen))
    weights = start()
    state, found = strategy.start(weights), []
    for number in range(1, rounds + 1):
        updates = round_updates(sites, weights, seed, number)
        about = Round(number, seed, {u.site: "d" for u in updates}, {u.site: u.num_examples for u in updates}, {})
        weights, state = strategy.aggregate(weights, iter(updates), state, about)
        if number % EVERY == 0:
            own = accuracies(weights, sites)
            losses = [loss_and_gradient(weights["shared/x"], s.x, s.y)[0] for s in sites]
            loss = float(np.average(losses, weights=[len(s.y) for s in sites]))
            found.append({"q": q, "seed": seed, "round": number, "mean": own.mean(), "variance": 1e4 * own.var(),
                          "worst_tenth": np.sort(own)[:WORST].mean(), "loss": loss})  # fmt: skip
    return found


def distance_to_unweighted(sites: list[Site], seed: int, rounds: int = 20) -> float:
    """Largest difference of q = 0 to `fedavg` of updates that count alike, over some rounds."""
    rules = [make_strategy(StrategyConfig.model_validate(own)) for own in (
        {"name": "q-fedavg", "q": 0.0, "lipschitz": 1 / RATE}, {"name": "fedavg"})]  # fmt: skip
    weights = [start(), start()]
    for number in range(1, rounds + 1):
        for place, rule in enumerate(rules):
            updates = round_updates(sites, weights[place], seed, number)
            alike = [replace(update, num_examples=1) for update in updates]
            about = Round(number, seed, {u.site: "d" for u in alike}, {u.site: 1 for u in alike}, {})
            weights[place], _ = rule.aggregate(weights[place], iter(alike), rule.start(weights[place]), about)
    return float(np.abs(weights[0]["shared/x"] - weights[1]["shared/x"]).max())


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Means of the last rounds, a row a q and seed."""
    late = runs[runs["round"] > runs["round"].max() - LAST * EVERY]
    return late.groupby(["q", "seed"], as_index=False)[["mean", "worst_tenth", "variance", "loss"]].mean()


def judge(runs: pd.DataFrame, distance: float) -> pd.DataFrame:
    """Every criterion with what was seen; those without a threshold are told to be judged by the reader."""
    ends = summary(runs).pivot(index="seed", columns="q")
    ratio = ends["variance"][1.0].mean() / ends["variance"][0.0].mean()
    worst = (ends["worst_tenth"][1.0] - ends["worst_tenth"][0.0]).mean()
    lost = (ends["mean"][0.0] - ends["mean"][1.0]).mean()
    curves = runs.groupby(["q", "round"])[["mean", "variance", "worst_tenth", "loss"]].mean()
    late, before = runs["round"].max(), int(runs["round"].max() * 0.8) // EVERY * EVERY
    moved = max(abs(curves.loc[(q, late), "loss"] / curves.loc[(q, before), "loss"] - 1) for q in (0.0, 1.0))
    same = curves.loc[0.0][curves.loc[0.0]["loss"] <= curves.loc[(1.0, late), "loss"]]
    rows = [
        ("q = 0 is the unweighted mean, to 1e-10", distance < 1e-10, f"{distance:.1e}"),
        ("variance of q = 1 over that of q = 0 <= 0.8", ratio <= 0.8, f"{ratio:.3f}"),
        ("q = 1 raises the worst tenth", worst > 0, f"{worst:+.3f}"),
        ("q = 1 costs at most 0.03 of the mean", lost <= 0.03, f"{lost:.3f}"),
        ("converged: loss of q = 0 and 1 moved by < 2 % in the last fifth", moved < 0.02, f"{moved:.3f}"),
    ]
    if len(same):
        share = curves.loc[(1.0, late), "variance"] / same.iloc[0]["variance"]
        when = f"{share:.3f} (q = 0 at round {same.index[0]})"
        rows.append(("at equal training loss: variance of q = 1 over that of q = 0 <= 0.8", share <= 0.8, when))
    return pd.DataFrame(rows, columns=["criterion", "met", "seen"])


def draw_figure(runs: pd.DataFrame, file: Path) -> None:
    """Variance against mean accuracy at the end, a point a seed; and the variance over rounds."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 3.3), layout="constrained")
    colours = ("#000000", "#56B4E9", "#0072B2", "#D55E00")
    ends = summary(runs)
    for q, colour, mark in zip(QS, colours, "osvD", strict=True):
        own = ends[ends["q"] == q]
        left.plot(own["mean"], own["variance"], mark, color=colour, markersize=4, alpha=0.35)
        left.plot(own["mean"].mean(), own["variance"].mean(), mark, color=colour, markersize=8, label=f"q = {q:g}")
        curve = runs[runs["q"] == q].groupby("round")["variance"].mean()
        right.plot(curve.index, curve, color=colour, linewidth=1.1, label=f"q = {q:g}")
    left.set_xlabel("mean test accuracy over sites")
    left.set_ylabel("variance over sites, squared points")
    left.set_title("at the end; small: seeds, large: their mean", fontsize=9)
    right.set_xlabel("round")
    right.set_title("variance over sites, mean of seeds", fontsize=9)
    right.legend(fontsize=8)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=8000, help="a multiple of 100, at least 500")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    file = options.results / "runs.csv"
    table, distance = pd.read_csv(file).to_dict("records") if file.exists() else [], 0.0
    done = {(row["q"], row["seed"]) for row in table if row["round"] == options.rounds}
    for seed in range(options.seeds):
        sites = draw_sites(seed, SITES, largest=300, tests=100)
        distance = max(distance, distance_to_unweighted(sites, seed))
        for q in (q for q in QS if (q, seed) not in done):
            table += play(q, sites, seed, options.rounds)
            pd.DataFrame(table).round(5).to_csv(file, index=False, lineterminator="\n")
            print({key: round(float(value), 4) for key, value in table[-1].items()}, flush=True)
    runs = pd.DataFrame(table)
    means = summary(runs).groupby("q")[["mean", "worst_tenth", "variance", "loss"]].mean().round(4)
    means.to_csv(options.results / "fair_resource.csv", lineterminator="\n")
    criteria = judge(runs, distance)
    criteria.to_csv(options.results / "criteria.csv", index=False, lineterminator="\n")
    draw_figure(runs, options.results / "fair_resource.png")
    print(means.to_string(), criteria.to_string(), sep="\n")


if __name__ == "__main__":
    main()
