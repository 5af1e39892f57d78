"""A mean of LoRA factors is not the mean of their products: does it matter, and which rule mends it? (H8)

Question    How far is each rule from the mean of the sites' products, what does that cost in accuracy where sites hold
            unlike labels and where they do not, and what is sent for it?
Source      Singhal et al., "FedEx-LoRA", 2024, https://arxiv.org/abs/2410.09432; Wang et al., "FLoRA", NeurIPS 2024,
            https://arxiv.org/abs/2409.05976; the others: see the strategies' files. There roberta on GLUE, 3 sites
Command     python experiments/lora_aggregation.py --data-root ../shared/data [--part toy minilm] [--seeds 5]; a
            finished run is not run again
Time        toy: some 15 minutes on one busy core; minilm: some 20
Expected    aggregation error < 1e-6 in every round for the exact rules (FFA-LoRA, RoLoRA, FLoRA, FedEx-LoRA), > 0 for
            FedIT; FedEx-LoRA above FedIT where labels are skewed (paired by seed, one-sided p < 0.05); the two within
            a point where they are not; bytes on the wire within 3 % of those of the tensors

Part `toy`: rank 4 on a softmax regression (convex in the product) and on a network of two layers (not convex), one
label a site or all of them, 100 rounds; see lora_sites.py. Part `minilm`: two layers of the pretrained body, LoRA of
rank 4 on the second, 400 headlines of finance/sentfin over 4 sites by Dirichlet(0.3), 12 rounds, 3 seeds; AdamW at two
learning rates, chosen on validation at seed 0. FedSA-LoRA has no global model: there each site's own is scored on its
own test examples, in minilm only (a site of one label knows the answer), and it is not compared with the others.

Leaves lora_aggregation/ with toy_runs.csv, minilm_runs.csv, minilm_errors.csv (a row a round), toy.csv and minilm.csv
(a row a method), criteria.csv, toy.png and minilm.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from lora_sites import at_best_rate, sweep
from scipy import stats

import fedfm

matplotlib.use("Agg")
from matplotlib import pyplot

RESULTS = Path(__file__).parent / "results" / "lora_aggregation"
EXACT = ("ffa-lora", "rolora", "flora", "fedex-lora")
TOY = ("fedit", *EXACT, "flexlora", "hetlora")
METHODS = (*TOY, "fedsa-lora")
PARTITIONS = {"toy": ("one-label", "iid"), "minilm": ("dirichlet", "iid")}
RANK, SITES, RATES = 4, 4, (1e-3, 3e-3)
CELL = ["body", "partition", "method"]
LINEAR = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]  # of the layer that trains, [out, in]
HEAD = 384 * 3 + 3


def config(options: argparse.Namespace, partition: str, method: str, rate: float, seed: int) -> dict:
    domain = {"task": "text-classification", "source": "finance/sentfin", "sites": SITES, "max-examples": 400,
              "partition": partition, "alpha": 0.3, "minimum-per-site": 30}  # fmt: skip
    return {
        "seed": seed, "rounds": options.minilm_rounds, "data-root": str(options.data_root),
        "runs": {"folder": str(options.runs)}, "evaluation": {"every": 100}, "engine": {"sites-at-once": "auto"},
        "body": {"name": "minilm", "layers": 2, "trainable-layers": 1, "tuning": "lora", "lora-rank": RANK,
                 "lora-alpha": 2.0 * RANK},
        "local": {"learning-rate": rate, "head-learning-rate": 2e-3, "max-length": 32, "length-buckets": True},
        "strategy": {"name": method}, "domains": {"finance": domain},
    }  # fmt: skip


def play(options: argparse.Namespace, partition: str, method: str, rate: float, seed: int) -> tuple[dict, list[dict]]:
    """The row of a run, and its aggregation error by round."""
    done = fedfm.run(config(options, partition, method, rate, seed))
    scores = (done.info["final_personal"] or done.info["final"])["finance"]
    valid = done.metrics.query("scope == 'domain' and split == 'validation' and metric == 'macro_f1'")
    rounds = done.rounds[done.rounds["round"] > 0]
    messages = SITES * len(rounds)
    key = {"body": "minilm", "partition": partition, "method": method, "rank": RANK, "rate": rate, "seed": seed}
    row = key | {
        "validation": valid[valid["round"] == valid["round"].max()]["value"].iloc[-1], "test": scores["macro_f1"],
        "accuracy": scores["accuracy"], "error_min": rounds["aggregation_error"].min(),
        "error_max": rounds["aggregation_error"].max(), "up": done.info["bytes_up"] / messages,
        "down": done.info["bytes_down"] / messages, "seconds": done.info["seconds"],
    }  # fmt: skip
    errors = rounds[["round", "aggregation_error"]].to_dict("records")
    return row, [key | error for error in errors]


def minilm_runs(options: argparse.Namespace) -> pd.DataFrame:
    """Both rates at seed 0; the other seeds at the rate that did better there on validation."""
    files = [options.results / name for name in ("minilm_runs.csv", "minilm_errors.csv")]
    rows, errors = (pd.read_csv(file).to_dict("records") if file.exists() else [] for file in files)
    cells = [("dirichlet", method) for method in METHODS] + [("iid", "fedit"), ("iid", "fedex-lora")]
    for seed in range(options.minilm_seeds):
        for partition, method in cells:
            own = [row for row in rows if (row["partition"], row["method"]) == (partition, method)]
            first = {row["rate"]: row["validation"] for row in own if row["seed"] == 0}
            for rate in RATES if seed == 0 else [max(first, key=first.get)]:
                if any((row["seed"], row["rate"]) == (seed, rate) for row in own):
                    continue
                row, curve = play(options, partition, method, rate, seed)
                rows, errors = [*rows, row], errors + curve
                for file, table in zip(files, (rows, errors), strict=True):
                    pd.DataFrame(table).to_csv(file, index=False, lineterminator="\n", float_format="%.6g")
                print(partition, method, rate, seed, round(row["test"], 3), f"{row['seconds']:.0f} s", flush=True)
    runs = pd.DataFrame(rows)
    first = runs[runs["seed"] == 0]
    best = first.loc[first.groupby(CELL)["validation"].idxmax(), [*CELL, "rate"]]
    return runs.merge(best, on=[*CELL, "rate"])


def expected_bytes(method: str) -> tuple[float, float]:
    """Up and down, for a site and round: float32 of the tensors that the rule's message holds."""
    a, b, dense = (sum(own) for own in zip(*((RANK * i, RANK * o, o * i) for o, i in LINEAR), strict=True))
    up = {"ffa-lora": b, "fedsa-lora": a, "rolora": (a + b) / 2}.get(method, a + b)
    down = {"ffa-lora": b, "fedsa-lora": a}.get(method, a + b) + (dense if method in ("flora", "fedex-lora") else 0)
    return 4 * (up + HEAD), 4 * (down + HEAD)


def judge_part(best: pd.DataFrame, part: str) -> list[tuple[str, bool, str]]:
    """The criteria on errors and scores, for each body of a part."""
    rows = []
    for body, own in best.groupby("body", sort=False):
        exact, inexact = (own[own["method"].isin(names)] for names in (EXACT, ("fedit",)))
        most, least = exact["error_max"].max(), inexact["error_min"].min()
        rows.append((f"{body}: largest error of the exact rules < 1e-6", bool(most < 1e-6), f"{most:.1e}"))
        rows.append((f"{body}: least error of FedIT > 0", bool(least > 0), f"{least:.1e}"))
        for partition in PARTITIONS[part]:
            scores = own[own["partition"] == partition].pivot(index="seed", columns="method", values="test")
            gaps = scores["fedex-lora"] - scores["fedit"]
            if partition == "iid":
                met = bool(abs(gaps.mean()) < 0.01)
                rows.append((f"{body}, iid: |FedEx-LoRA - FedIT| < 0.01", met, f"{gaps.mean():+.4f}"))
                continue
            p = stats.ttest_1samp(gaps, 0.0, alternative="greater").pvalue if len(gaps) > 1 else float("nan")
            seen = f"{gaps.mean():+.4f}, p = {p:.3f}, {int((gaps > 0).sum())} of {len(gaps)} seeds"
            rows.append((f"{body}, {partition}: FedEx-LoRA > FedIT, p < 0.05", bool(p < 0.05), seen))
    return rows


def judge_bytes(best: pd.DataFrame) -> tuple[str, bool, str]:
    """The largest deviation of the bytes that went over the wire from those of the tensors."""
    worst, who = 0.0, ""
    for method, own in best.groupby("method"):
        for way, bytes_ in zip(("up", "down"), expected_bytes(method), strict=True):
            off = float((own[way] / bytes_ - 1).abs().max())
            worst, who = max((worst, who), (off, f"{method} {way}"))
    return "minilm: bytes within 3 % of the tensors' own", worst < 0.03, f"{worst:.3f} ({who})"


def table_of(best: pd.DataFrame) -> pd.DataFrame:
    found = {"test": ("test", "mean"), "sd": ("test", "std"), "seeds": ("test", "size"), "rate": ("rate", "first"),
             "error_max": ("error_max", "max")}  # fmt: skip
    if "up" in best:
        found |= {"up": ("up", "mean"), "down": ("down", "mean")}
    return best.groupby(CELL, sort=False).agg(**found).reset_index()


def bars(axis, best: pd.DataFrame, methods: tuple[str, ...], partitions: tuple[str, ...]) -> None:
    """Mean test score of each method, a bar a partition, and a dot a seed."""
    for shift, (partition, colour) in enumerate(zip(partitions, ("#E69F00", "#56B4E9"), strict=True)):
        for place, method in enumerate(methods):
            own = best[(best["partition"] == partition) & (best["method"] == method)]["test"]
            if len(own):
                x = place + 0.38 * (shift - 0.5)
                axis.bar(x, own.mean(), width=0.36, color=colour, label=partition if place == 0 else None)
                axis.plot(x + np.linspace(-0.1, 0.1, len(own)), own, ".", markersize=4, color="black")
    axis.set_xticks(range(len(methods)), methods, fontsize=8, rotation=40, ha="right")
    axis.set_ylim(0, 1)


def draw_toy(best: pd.DataFrame, file: Path) -> None:
    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.3), sharey=True, layout="constrained")
    for axis, (body, title) in zip(axes, {"linear": "softmax regression", "mlp": "two layers"}.items(), strict=True):
        bars(axis, best[best["body"] == body], TOY, PARTITIONS["toy"])
        axis.set_title(f"{title}, rank {RANK}", fontsize=10)
    axes[0].set_ylabel("test accuracy; dots: seeds")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def draw_minilm(best: pd.DataFrame, errors: pd.DataFrame, file: Path) -> None:
    """Scores, and the aggregation error by round where the labels are skewed."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9.6, 3.5), layout="constrained")
    bars(left, best, METHODS, PARTITIONS["minilm"])
    left.set_ylabel("test macro-F1; dots: seeds")
    left.legend(fontsize=8, ncols=2, loc="upper left")
    left.set_title("fedsa-lora: each site's own model", fontsize=9)
    errors = errors[errors["partition"] == "dirichlet"].merge(best[[*CELL, "rate"]].drop_duplicates())
    curves = errors.groupby(["method", "round"])["aggregation_error"].mean()
    colours = ("black", "#0072B2", "#56B4E9", "#D55E00", "#E69F00", "#009E73", "#CC79A7")
    for method, colour, mark in zip(TOY, colours, "osv^D<>", strict=True):
        own = curves[method].clip(lower=1e-9)
        right.plot(own.index, own, color=colour, marker=mark, markersize=3.5, linewidth=1, label=method)
    right.set_yscale("log")
    right.set_xlabel("round")
    right.set_ylabel("aggregation error, mean of seeds")
    right.legend(fontsize=7, loc="center left", bbox_to_anchor=(1.02, 0.5))
    figure.savefig(file, dpi=150, metadata={"Software": None})
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, default="../shared/data")
    parser.add_argument("--part", nargs="+", choices=("toy", "minilm"), default=["toy", "minilm"])
    parser.add_argument("--seeds", type=int, default=5, help="of the toy")
    parser.add_argument("--minilm-seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=100, help="of the toy")
    parser.add_argument("--minilm-rounds", type=int, default=12)
    parser.add_argument("--runs", type=Path, default=Path("runs/lora_aggregation"))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.results.mkdir(parents=True, exist_ok=True)
    criteria = []
    if "toy" in options.part:
        cells = [(b, p, m, RANK) for b in ("linear", "mlp") for p in PARTITIONS["toy"] for m in TOY]
        best = at_best_rate(sweep(options.results / "toy_runs.csv", cells, options.seeds, options.rounds))
        table_of(best).to_csv(options.results / "toy.csv", index=False, lineterminator="\n", float_format="%.4g")
        draw_toy(best, options.results / "toy.png")
        criteria += judge_part(best, "toy")
    if "minilm" in options.part:
        best = minilm_runs(options)
        table_of(best).to_csv(options.results / "minilm.csv", index=False, lineterminator="\n", float_format="%.6g")
        draw_minilm(best, pd.read_csv(options.results / "minilm_errors.csv"), options.results / "minilm.png")
        criteria += [*judge_part(best, "minilm"), judge_bytes(best)]
    found = pd.DataFrame(criteria, columns=["criterion", "met", "seen"])
    name = "criteria.csv" if len(options.part) == 2 else f"criteria_{options.part[0]}.csv"
    found.to_csv(options.results / name, index=False, lineterminator="\n")
    print(found.to_string())


if __name__ == "__main__":
    main()
