"""Which rule bears how many attackers, and what does it cost where nobody attacks? (H12)

Question: 0 to 4 of 10 sites attack by sign-flip x10, Gaussian noise, ALIE or label-flip. How accurate are the others?
Source: Blanchard et al. 2017, Yin et al. 2018, El Mhamdi et al. 2018, Baruch et al. 2019; see the strategies' files.
Command: python experiments/attacks.py [--seeds 3]; some 10 minutes on one core.
Expected: FedAvg collapses with one sign-flipper; median, trimmed mean (0.4) and Krum (f = 3) stay within 3 points of
    their own accuracy without attack for f <= 3; Krum is worse than the mean where sites are unlike and nobody attacks.

Writes experiments/results/attacks.csv (a row a run) and .png. Generated data: sites that draw from one source, and
those of Synthetic(1, 1), unlike ones, for the case without attack.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import matplotlib
import numpy as np
import pandas as pd
from softmax_sites import CLASSES, FEATURES, Site, draw_sites, pooled_accuracy, start, train

from fedfm.config import StrategyConfig
from fedfm.strategies import Round, Update, make_strategy

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results"
SITES, RATE, EPOCHS, FACTOR = 10, 0.02, 2, 10.0
RULES = {"fedavg": {}, "median": {}, "trimmed-mean": {"trim": 0.4}, "krum": {"byzantine": 3},
         "multi-krum": {"byzantine": 3}, "bulyan": {"byzantine": 1}, "norm-bound": {}}  # fmt: skip
ATTACKS = ("sign-flip", "gaussian", "alie", "label-flip")


def common_sites(seed: int) -> list[Site]:
    """Ten sites that draw from one source, 200 examples each and 20 to test."""
    draw = np.random.default_rng([seed, *b"common"])
    scale = np.sqrt(np.arange(1, FEATURES + 1) ** -1.2)
    weight, bias = draw.standard_normal((FEATURES, CLASSES)), draw.standard_normal(CLASSES)
    x = scale * draw.standard_normal((SITES * 220, FEATURES))
    y = (x @ weight + bias).argmax(axis=1)
    parts = [slice(220 * k, 220 * (k + 1)) for k in range(SITES)]
    return [Site(f"site-{k:03d}", x[p][20:], y[p][20:], x[p][:20], y[p][:20]) for k, p in enumerate(parts)]


def spoil(updates: list[Update], bad: list[int], attack: str, draw: np.random.Generator) -> list[Update]:
    """What arrives, where the sites `bad` attack."""
    own = np.stack([updates[k].delta["shared/x"] for k in bad]) if bad else np.zeros((0, 1))
    honest = len(updates) - len(bad)
    supporters = len(updates) // 2 + 1 - len(bad)
    z = NormalDist().inv_cdf(min(max((honest - supporters) / honest, 1e-3), 1 - 1e-3))
    for k in bad:
        change = updates[k].delta["shared/x"]
        sent = {
            "sign-flip": -FACTOR * change,
            "gaussian": FACTOR * float(np.sqrt(np.mean(change**2))) * draw.standard_normal(len(change)),
            "alie": own.mean(axis=0) - z * own.std(axis=0),
            "label-flip": change,
        }[attack]
        updates[k] = replace(updates[k], delta={"shared/x": sent})
    return updates


def play(rule: str, attack: str, count: int, seed: int, rounds: int, alike: bool = True) -> float:
    """Mean test accuracy of the last five rounds, on the honest sites."""
    strategy = make_strategy(StrategyConfig.model_validate({"name": rule, **RULES[rule]}))
    sites = common_sites(seed) if alike else draw_sites(seed, SITES, largest=300)
    bad = sorted(np.random.default_rng([seed, *b"bad"]).permutation(SITES)[:count].tolist())
    trained = [
        replace(s, y=CLASSES - 1 - s.y) if k in bad and attack == "label-flip" else s for k, s in enumerate(sites)
    ]
    good = [site for k, site in enumerate(sites) if k not in bad]
    weights, found = start(), []
    state = strategy.start(weights)
    for number in range(1, rounds + 1):
        updates = [
            train(site, weights, strategy, np.random.default_rng([seed, number, k]), RATE, EPOCHS)
            for k, site in enumerate(trained)
        ]
        updates = spoil(updates, bad, attack, np.random.default_rng([seed, number, *b"noise"]))
        about = Round(number, seed, {u.site: "d" for u in updates}, {u.site: u.num_examples for u in updates}, {})
        weights, state = strategy.aggregate(weights, iter(updates), state, about)
        found.append(pooled_accuracy(weights, good))
    return float(np.mean(found[-5:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    table = []
    for seed in range(options.seeds):
        for rule in RULES:
            for attack in ATTACKS:
                for count in range(5):
                    seen = play(rule, attack, count, seed, options.rounds)
                    table.append({"sites": "alike", "rule": rule, "attack": attack, "attackers": count, "seed": seed,
                                  "accuracy": seen})  # fmt: skip
            seen = play(rule, "sign-flip", 0, seed, options.rounds, alike=False)
            table.append({"sites": "unlike", "rule": rule, "attack": "none", "attackers": 0, "seed": seed,
                          "accuracy": seen})  # fmt: skip
    rows = pd.DataFrame(table)
    RESULTS.mkdir(exist_ok=True)
    rows.round(6).to_csv(RESULTS / "attacks.csv", index=False, lineterminator="\n")
    means = rows.groupby(["sites", "attack", "rule", "attackers"])["accuracy"].mean()
    print(means.unstack("attackers").round(3).to_string())
    draw_figure(means, RESULTS / "attacks.png")
    judge(means)


def judge(means: pd.Series) -> None:
    """Print every criterion with what was seen."""
    alike = means["alike"]
    fall = alike["sign-flip", "fedavg", 0] - alike["sign-flip", "fedavg", 1]
    criteria = [("fedavg falls with one sign-flipper by >= 0.2", fall, fall >= 0.2)]
    for rule in ("median", "trimmed-mean", "krum"):
        loss = max(alike[attack, rule, 0] - alike[attack, rule, count] for attack in ATTACKS for count in (1, 2, 3))
        criteria.append((f"{rule}: largest loss for f <= 3, <= 0.03", loss, loss <= 0.03))
    gap = means["unlike", "none", "fedavg", 0] - means["unlike", "none", "krum", 0]
    criteria.append(("krum is below the mean where sites are unlike and nobody attacks", gap, gap > 0))
    for what, seen, met in criteria:
        print(f"{what}: {seen:.3f}, {'met' if met else 'MISSED'}")


def draw_figure(means: pd.Series, file: Path) -> None:
    """Accuracy by number of attackers, a panel an attack, a line a rule."""
    figure, axes = pyplot.subplots(1, 4, figsize=(11, 3), sharey=True, layout="constrained")
    colours = ("black", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
    for axis, attack in zip(axes, ATTACKS, strict=True):
        for rule, colour, mark in zip(RULES, colours, "osv^D<>", strict=True):
            values = means["alike"][attack][rule]
            axis.plot(values.index, values, color=colour, marker=mark, markersize=3.5, linewidth=1.1, label=rule)
        axis.set_title(attack, fontsize=10)
        axis.set_xlabel("attackers of 10 sites")
        axis.set_xticks(range(5))
    axes[0].set_ylabel("test accuracy, mean of seeds")
    axes[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=150, metadata={"Software": None})


if __name__ == "__main__":
    main()
