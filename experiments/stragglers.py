"""Does FedProx hold what FedAvg loses when most sites do not finish their work? (H1)

Question: of 10 of 30 sites asked in a round, 0, 50 or 90 % get to a part of their 20 epochs. FedAvg drops them, FedProx
    keeps what they have done. What does that cost?
Source: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, https://arxiv.org/abs/1812.06127,
    figure 1, on Synthetic(1, 1): learning rate 0.01, batches of 10, 20 epochs, 100 rounds.
Command: python experiments/stragglers.py [--seeds 5]; some 20 minutes on one core.
Expected: at 90 % FedProx with mu = 1 is at least 8 points above FedAvg in the mean and above it for every seed; mu = 0
    with partial work kept is above FedAvg; FedAvg's deviation over the last 20 rounds is at least twice FedProx's.

Writes experiments/results/stragglers.csv (a row a run) and .png. Generated data; site and server halves of the package.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from softmax_sites import draw_sites, pooled_accuracy, pooled_loss, start, train

from fedfm.config import StrategyConfig
from fedfm.strategies import Round, make_strategy

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results"
SITES, ASKED, EPOCHS, RATE = 30, 10, 20, 0.01
METHODS = {"fedavg": ("fedavg", {}), "fedprox, mu 0": ("fedprox", {"proximal-mu": 0.0}),
           "fedprox, mu 1": ("fedprox", {"proximal-mu": 1.0})}  # fmt: skip


def play(method: str, share: float, seed: int, rounds: int) -> list[tuple[float, float]]:
    """(test accuracy, training loss) after each round; the same stragglers for every method."""
    name, own = METHODS[method]
    strategy = make_strategy(StrategyConfig.model_validate({"name": name, **own}))
    sites, weights = draw_sites(seed, SITES), start()
    state, found = strategy.start(weights), []
    for number in range(1, rounds + 1):
        draw = np.random.default_rng([seed, number])
        asked = np.sort(draw.choice(SITES, ASKED, replace=False))
        late = set(draw.choice(asked, int(share * ASKED + 0.5), replace=False).tolist())
        done = {int(k): float(draw.integers(1, EPOCHS)) for k in asked}
        updates = [
            train(sites[k], weights, strategy, np.random.default_rng([seed, number, k]), RATE,
                  done[k] if k in late else EPOCHS)
            for k in map(int, asked) if k not in late or strategy.keeps_partial
        ]  # fmt: skip
        if updates:
            about = Round(number, seed, {u.site: "d" for u in updates}, {u.site: u.num_examples for u in updates}, {})
            weights, state = strategy.aggregate(weights, iter(updates), state, about)
        found.append((pooled_accuracy(weights, sites), pooled_loss(weights, sites)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    table, curves = [], {}
    for share in (0.0, 0.5, 0.9):
        for method in METHODS:
            for seed in range(options.seeds):
                found = np.array(play(method, share, seed, options.rounds))
                curves.setdefault((share, method), []).append(found[:, 0])
                table.append({
                    "stragglers": share, "method": method, "seed": seed, "accuracy": found[-10:, 0].mean(),
                    "loss": found[-10:, 1].mean(), "deviation": found[-20:, 0].std(),
                })  # fmt: skip
                print(table[-1], flush=True)
    rows = pd.DataFrame(table)
    RESULTS.mkdir(exist_ok=True)
    rows.round(6).to_csv(RESULTS / "stragglers.csv", index=False, lineterminator="\n")
    draw_figure(curves, RESULTS / "stragglers.png")
    print(rows.groupby(["stragglers", "method"])[["accuracy", "loss", "deviation"]].mean().round(3))
    judge(rows)


def judge(rows: pd.DataFrame) -> None:
    """Print every criterion with what was seen."""
    most = rows[rows["stragglers"] == 0.9].pivot(index="seed", columns="method")
    gain = most["accuracy"]["fedprox, mu 1"] - most["accuracy"]["fedavg"]
    kept = (most["accuracy"]["fedprox, mu 0"] - most["accuracy"]["fedavg"]).mean()
    calm = most["deviation"]["fedavg"].mean() / most["deviation"]["fedprox, mu 1"].mean()
    for what, seen, met in (
        ("gain of mu = 1 at 90 % >= 0.08 in the mean", gain.mean(), gain.mean() >= 0.08),
        ("... and > 0 for every seed", gain.min(), gain.min() > 0),
        ("partial work kept, mu = 0, is above FedAvg", kept, kept > 0),
        ("FedAvg's deviation over FedProx's >= 2", calm, calm >= 2),
    ):
        print(f"{what}: {seen:.3f}, {'met' if met else 'MISSED'}")


def draw_figure(curves: dict, file: Path) -> None:
    """Mean accuracy over seeds by round, a panel a share of stragglers."""
    figure, axes = pyplot.subplots(1, 3, figsize=(9, 2.9), sharey=True, layout="constrained")
    for axis, share in zip(axes, (0.0, 0.5, 0.9), strict=True):
        for method, colour, dash in zip(METHODS, ("#D55E00", "#56B4E9", "#0072B2"), ("-", "--", "-"), strict=True):
            axis.plot(np.mean(curves[share, method], axis=0), color=colour, linestyle=dash, linewidth=1.2, label=method)
        axis.set_title(f"{share:.0%} stragglers", fontsize=10)
        axis.set_xlabel("round")
    axes[0].set_ylabel("test accuracy, mean of seeds")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
