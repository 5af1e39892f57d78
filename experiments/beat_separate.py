"""Can a joint federation over unlike domains be as good as one federation for each domain?

Question    Brain MRI, finance headlines and disease names over one MiniLM of 3 layers, all of the training data and a
            tenth of it: which way of sharing is not worse than separate federations on any domain, and better on one?
Command     python experiments/beat_separate.py --data-root ../shared/data [--data all few] [--variant fedavg ...]
            [--seeds 3] [--rounds 5] [--jobs 1]; a finished run is not run again, so that it can be stopped and gone
            on with
Time        all of the data: some 10 minutes a run on one core (three runs for `separate`); a tenth: some 2 minutes
Expected    at least one variant whose interval of differences to `separate`, by seed, lies at or above zero for every
            domain, and above it for one with a tenth of the data; whatever comes out is written down

Every domain makes the same number of optimiser steps under every variant: asserted from the runs' own tables. Each run
leaves a row in experiments/results/beat_separate/runs.csv; the table beat_separate.csv / .md is made from all of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
from scipy import stats

import fedfm

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "beat_separate"
PRIMARY = {"medical": "auc", "finance": "macro_f1", "ner": "f1"}
FEW = {"medical": 220, "finance": 800, "ner": 540}  # about a tenth of each domain's training examples

VARIANTS: dict[str, list[str]] = {
    "separate": [],  # one federation a domain: FedAvg in each
    "fedavg": [],
    "fedadam": ["strategy.name=fedadam", "strategy.server-learning-rate=0.003"],
    "server-rate-2": ["strategy.server-learning-rate=2"],
    "server-rate-3": ["strategy.server-learning-rate=3"],
    "domain-sum": ["strategy.name=domain-sum"],
    "b-per-domain": ["strategy.name=fedsa-lora", 'sharing."*lora_B"=domain'],
    "dual-lora": ["strategy.name=dual-lora"],
    "pcgrad": ["strategy.name=pcgrad"],
    "cagrad": ["strategy.name=cagrad"],
    "loss-adaptive": ["strategy.domain-weights=loss-adaptive"],
}


def overrides(options: argparse.Namespace, variant: str, data: str, seed: int) -> list[str]:
    """What of three_domains.toml is other in a run."""
    few = [f"domains.{domain}.max-examples={count}" for domain, count in FEW.items()] if data == "few" else []
    here = [f"data-root={options.data_root}", f"runs.folder={options.runs}", "engine.name=local", "engine.workers=1"]
    return [*here, f"rounds={options.rounds}", f"seed={seed}", "evaluation.every=100", *few, *VARIANTS[variant]]


def play(options: argparse.Namespace, variant: str, data: str, seed: int) -> list[dict]:
    """The rows of one variant: a domain each, with test score, examples trained on, seconds and megabytes."""
    config = fedfm.load_config(HERE / "three_domains.toml", *overrides(options, variant, data, seed))
    parts = [[domain] for domain in PRIMARY] if variant == "separate" else [list(PRIMARY)]
    rows = []
    for part in parts:
        whole = config.to_dict()
        whole["domains"] = {domain: whole["domains"][domain] for domain in part}
        done = fedfm.run(whole)
        trained = done.metrics.query("split == 'train' and metric == 'loss'").groupby("domain")["num_examples"].sum()
        for domain in part:
            rows.append({
                "variant": variant, "data": data, "seed": seed, "domain": domain, "metric": PRIMARY[domain],
                "score": done.info["final"][domain][PRIMARY[domain]], "examples": int(trained[domain]),
                "seconds": done.info["seconds"], "megabytes": (done.info["bytes_up"] + done.info["bytes_down"]) / 1e6,
                "sha256": done.info["final_weights_sha256"][:12],
            })  # fmt: skip
    return rows


def played(options: argparse.Namespace, cells: list[tuple[str, int, str]]) -> Iterator[list[dict]]:
    """The rows of each (data, seed, variant), as they are done; every run in a process of its own, `jobs` at a time."""
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = [pool.submit(play, options, variant, data, seed) for data, seed, variant in cells]
        for future in as_completed(waiting):
            yield future.result()


def in_order(runs: pd.DataFrame) -> pd.DataFrame:
    """Rows by data, seed and variant, whichever was done first."""
    places = {"data": ["few", "all"], "variant": list(VARIANTS), "domain": list(PRIMARY)}
    return runs.sort_values(
        ["data", "seed", "variant", "domain"],
        key=lambda column: column.map(places[column.name].index) if column.name in places else column,
        ignore_index=True,
    )


def assert_equal_budget(runs: pd.DataFrame) -> None:
    """Every domain has trained on the same number of examples under every variant."""
    for key, own in runs.groupby(["data", "seed", "domain"]):
        assert own["examples"].nunique() == 1, f"unequal budgets at {key}: {own[['variant', 'examples']]}"


def summary(runs: pd.DataFrame) -> pd.DataFrame:
    """Mean score by variant and domain, and the difference to `separate` by seed with its 95 % interval."""
    rows = []
    for (data, variant, domain), own in runs.groupby(["data", "variant", "domain"], sort=False):
        base = runs.query("variant == 'separate' and data == @data and domain == @domain").set_index("seed")["score"]
        gaps = (own.set_index("seed")["score"] - base).dropna()
        low = high = float("nan")
        if len(gaps) > 1 and gaps.std() > 0:
            low, high = stats.t.interval(0.95, len(gaps) - 1, gaps.mean(), stats.sem(gaps))
        found = {"seeds": len(own), "score": own["score"].mean(), "difference": gaps.mean(), "low": low, "high": high}
        rows.append({"data": data, "variant": variant, "domain": domain, **found})
    return pd.DataFrame(rows).round(4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", default="../shared/data")
    parser.add_argument("--data", nargs="+", choices=("all", "few"), default=["few", "all"])
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", default="runs")
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    file = RESULTS / "runs.csv"
    runs = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=["variant", "data", "seed"])
    done = set(runs[["data", "seed", "variant"]].itertuples(index=False, name=None))
    wanted = [cell for cell in product(options.data, range(options.seeds), options.variant) if cell not in done]
    for rows in played(options, wanted):
        runs = in_order(pd.concat([runs, pd.DataFrame(rows)], ignore_index=True))
        runs.to_csv(file, index=False, lineterminator="\n")
        print(pd.DataFrame(rows).to_string(header=False, index=False), flush=True)
    assert_equal_budget(runs)
    table = summary(runs)
    table.to_csv(RESULTS / "beat_separate.csv", index=False, lineterminator="\n")
    print(table.to_string())


if __name__ == "__main__":
    main()
