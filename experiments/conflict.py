"""Two domains that contradict each other: what does sharing cost, and what gives it back?

Question    Two domains of the same generated sentences whose labels are opposed, head and all shared: how far does a
            joint federation fall behind separate ones, and how much of that do conflict-aware and separated variants
            recover?
Source      generated here: sentences of 8 words, each from one of two lists; the label says which list gave more
Command     python experiments/conflict.py [--seeds 3]; a finished run is not run again (see the folder that it prints)
Time        3 minutes on one core
Expected    FedAvg on shared heads: negative transfer in both domains (the interval against `per-domain` below zero),
            mean accuracy near a coin's 0.5; at least one variant recovers at least half of what is lost, in the mean
            over seeds of macro-F1

The table lies in experiments/results/conflict: conflict.csv, and criteria.csv with what was met and what was missed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

import fedfm
from fedfm.results.statistics import paired

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "conflict"
RISE = ["profit", "growth", "record", "strong", "gain", "rise", "upbeat", "expand"]
FALL = ["loss", "decline", "weak", "cut", "fall", "drop", "downbeat", "shrink"]
VARIANTS = {
    "per-domain": {"strategy.name": "per-domain"},
    "fedavg": {"strategy.name": "fedavg"},
    "pcgrad": {"strategy.name": "pcgrad"},
    "cagrad": {"strategy.name": "cagrad"},
    "domain heads": {"strategy.name": "fedavg", 'sharing."head.*"': "domain"},
    "fedper": {"strategy.name": "fedper"},
}


def write_data(folder: Path, count: int = 240) -> None:
    """`plain.csv` and `opposed.csv`: the same sentences, the labels turned round in the second."""
    draw = np.random.default_rng(7)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for _ in range(count):
        ups = int(draw.choice([1, 2, 3, 5, 6, 7]))
        words = [*draw.choice(RISE, ups), *draw.choice(FALL, 8 - ups)]
        rows.append((" ".join(draw.permutation(words)), "up" if ups > 4 else "down"))
    plain = pd.DataFrame(rows, columns=["text", "label"])
    opposed = plain.assign(label=plain["label"].map({"up": "down", "down": "up"}))
    plain.to_csv(folder / "plain.csv", index=False)
    opposed.to_csv(folder / "opposed.csv", index=False)


def config(data: Path, runs: Path) -> dict:
    """Everything is shared, heads too, unless a variant says otherwise."""
    domain = {"task": "text-classification", "sites": 2}
    return {
        "rounds": 6, "data-root": str(data), "runs": {"folder": str(runs)}, "evaluation": {"every": 6},
        "body": {"tuning": "lora", "lora-rank": 16, "lora-alpha": 32.0},
        "local": {"epochs": 2, "learning-rate": 2e-3, "head-learning-rate": 3e-3, "max-length": 16},
        "domains": {"plain": {**domain, "source": "plain.csv"}, "opposed": {**domain, "source": "opposed.csv"}},
    }  # fmt: skip


def play(data: Path, runs: Path, seeds: int) -> pd.DataFrame:
    """One row for each variant, seed and domain: macro-F1 and accuracy on test, of the model that sites use."""
    file = runs / "conflict.csv"
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    done = {(row["variant"], row["seed"]) for row in rows}
    for name, changes in VARIANTS.items():
        shared = {} if any(key.startswith("sharing") for key in changes) or name in ("per-domain", "fedper") else {
            'sharing."head.*"': "shared"
        }  # fmt: skip
        for seed in (seed for seed in range(seeds) if (name, seed) not in done):
            words = [f"{key}={value}" for key, value in {**shared, **changes}.items()]
            info = fedfm.run(config(data, runs), f"seed={seed}", *words).info
            final = info["final_personal"] or info["final"]
            for domain, scores in final.items():
                kept = {key: scores[key] for key in ("macro_f1", "accuracy")}
                rows.append({"variant": name, "seed": seed, "domain": domain, **kept})
            pd.DataFrame(rows).to_csv(file, index=False)
            print(
                f"{name:14} seed {seed}  " + "  ".join(f"{d} {s['macro_f1']:.3f}" for d, s in final.items()), flush=True
            )
    return pd.DataFrame(rows)


def judge(runs: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The table by variant and domain, and the criteria."""
    scores = runs.pivot(index=["domain", "seed"], columns="variant", values="macro_f1")
    rows = []
    for name in VARIANTS:
        for domain in ("plain", "opposed"):
            own = scores.loc[domain]
            gap = paired(own[name].tolist(), own["per-domain"].tolist())
            found = {"macro_f1": own[name].mean(), "difference": gap.mean, "low": gap.low, "high": gap.high}
            rows.append({"variant": name, "domain": domain, **found})
    table = pd.DataFrame(rows)
    mean = scores.groupby("seed").mean().mean()
    lost = mean["per-domain"] - mean["fedavg"]
    recovered = {
        name: (mean[name] - mean["fedavg"]) / lost for name in VARIANTS if name not in ("fedavg", "per-domain")
    }
    fedavg = table[table["variant"] == "fedavg"]
    best = max(recovered, key=recovered.get)
    criteria = [
        (
            "negative transfer of FedAvg in both domains",
            bool((fedavg["high"] < 0).all()),
            f"{fedavg['high'].max():.3f}",
        ),
        ("a variant recovers at least half", recovered[best] >= 0.5, f"{best}: {recovered[best]:.2f}"),
    ]
    criteria += [(f"recovered by {name}", share >= 0.5, f"{share:.2f}") for name, share in recovered.items()]
    return table.round(4), pd.DataFrame(criteria, columns=["criterion", "met", "seen"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runs", type=Path, default=Path("runs/conflict"))
    options = parser.parse_args()
    runs = options.runs.resolve()
    write_data(runs / "data")
    table, criteria = judge(play(runs / "data", runs, options.seeds))
    RESULTS.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULTS / "conflict.csv", index=False, lineterminator="\n")
    criteria.to_csv(RESULTS / "criteria.csv", index=False, lineterminator="\n")
    print(table.to_string(), criteria.to_string(), runs, sep="\n")


if __name__ == "__main__":
    main()
