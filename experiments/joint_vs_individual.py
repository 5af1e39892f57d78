"""Does a joint federation over unlike domains beat models that are trained alone? Real data, the bounds, one table.

Question    Brain MRI, finance headlines and disease names over one MiniLM of 3 layers, each domain with little data:
            each site alone, each domain alone, all domains together (FedAvg, dual-lora), all data in one place. Where
            does federating help, where does sharing a body between domains hurt?
Command     python experiments/joint_vs_individual.py --data-root ../shared/data [--seeds 3] [--jobs 1] [--all]
            which is `fedfm compare experiments/three_domains.toml` over the strategies below; run again, it goes on
            with what is missing
Time        18 runs of 3 to 4 minutes, two at once: 34 minutes on 2 cores; --all: all of the training data, some 10
            minutes a run on a core of its own
Expected    a table with intervals, whatever it says; equal optimiser steps for every strategy, asserted

Small results (cells.csv, summary.csv, pairs.csv, transfer.csv, main.md, figures) are copied from the folder of the
comparison to experiments/results/joint_vs_individual.
"""

from __future__ import annotations

import argparse
import shutil
import tomllib
from pathlib import Path

import fedfm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "joint_vs_individual"
STRATEGIES = ["fedavg", "dual-lora", "local-only", "per-domain", "centralised", "centralised-joint"]
FEW = {"medical": 220, "finance": 800, "ner": 540}  # about a tenth of each domain's training examples
KEPT = (
    "cells.csv",
    "summary.csv",
    "pairs.csv",
    "transfer.csv",
    "tables/main.md",
    "figures/final.png",
    "figures/transfer.png",
)


def config(data_root: str, runs: str, few: bool) -> dict:
    """three_domains.toml in one process, five rounds, validation at the end only."""
    data = tomllib.loads((HERE / "three_domains.toml").read_text(encoding="utf-8"))
    data |= {"data-root": data_root, "rounds": 5, "runs": {"folder": runs}, "evaluation": {"every": 5}}
    data["engine"] = {"name": "local"}
    for domain, count in FEW.items() if few else ():
        data["domains"][domain]["max-examples"] = count
    return data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args()
    grid = {"strategy.name": STRATEGIES, "seed": list(range(options.seeds))}
    source = config(str(Path(options.data_root).resolve()), options.runs, few=not options.all)
    done = fedfm.compare(source, grid, options.jobs, say=lambda line: print(line, flush=True))
    target = RESULTS if not options.all else RESULTS / "all"
    target.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        shutil.copy(done.folder / name, target / Path(name).name)
    print(done.folder)


if __name__ == "__main__":
    main()
