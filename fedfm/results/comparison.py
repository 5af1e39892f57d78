"""The tables of a comparison, read from its runs' folders: scores by cell, summaries, differences, transfer.

    cells.csv      one row for each run, domain, metric and model
    summary.csv    mean, standard deviation and 95 % interval over seeds, by setting
    pairs.csv      differences between settings, paired by seed, with tests
    transfer.csv   what a setting gives a domain against training alone, apart, and on pooled data
    reach.csv      rounds, megabytes and seconds until the target

Rows of domain "mean" and "worst" are over the domains' primary metrics, of one run. A setting whose sites have models
of their own is shown by these (`shown`): every test example is then scored by the model that its site would use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from fedfm.results.run_folder import RunFolder
from fedfm.results.statistics import gini, holm, interval, paired

BOUNDS = ("local-only", "per-domain", "centralised", "centralised-joint")
OVER = ("mean", "worst")
TARGET_SHARE = 0.95


@dataclass(frozen=True)
class CellRun:
    """A finished cell: its label in the comparison, seed, and folder."""

    name: str
    label: str
    strategy: str
    seed: int
    folder: RunFolder
    others: str = ""  # the values of keys outside [strategy], in which budgets may differ


def cells_table(runs: list[CellRun]) -> pd.DataFrame:
    """cells.csv."""
    return pd.DataFrame([row for run in runs for row in _rows_of(run)])


def _rows_of(run: CellRun) -> list[dict]:
    info, metrics = run.folder.info, run.folder.metrics
    primary: Mapping[str, str] = info["primary"]
    common = {
        "cell": run.name, "setting": run.label, "strategy": run.strategy, "others": run.others, "seed": run.seed,
    }  # fmt: skip
    cost = {
        "rounds": info["rounds"], "megabytes": (info["bytes_up"] + info["bytes_down"]) / 1e6,
        "seconds": info["seconds"], "run": run.folder.path.name,
    }  # fmt: skip
    rows = []
    models = {"global": info["final"], "personal": info.get("final_personal")}
    shown = "personal" if models["personal"] else "global"
    steps = metrics.query("metric == 'steps' and split == 'train'").groupby("domain")["value"].sum()
    for model, final in models.items():
        if not final or (run.strategy == "local-only" and model == "global"):  # which no site has trained
            continue
        sites = metrics[(metrics["scope"] == "site") & (metrics["split"] == "test") & (metrics["model"] == model)]
        own = {**common, "model": model, "shown": model == shown}
        for domain, scores in final.items():
            for metric, value in scores.items():
                at = sites[(sites["domain"] == domain) & (sites["metric"] == metric)]["value"].tolist()
                known, worst = [v for v in at if math.isfinite(v)], max if metric == "loss" else min
                rows.append(
                    {**own, "domain": domain, "metric": metric, "primary": metric == primary[domain]}
                    | {"value": math.nan if value is None else value, "worst_site": worst(known, default=math.nan)}
                    | {"gini": gini(known) if metric != "loss" else math.nan, "steps": int(steps.get(domain, 0))}
                    | cost
                )
        known = [final[d][primary[d]] for d in final if final[d][primary[d]] is not None]
        for name, value in zip(OVER, (sum(known) / len(known), min(known)) if known else (), strict=False):
            rows.append({**own, "domain": name, "metric": "primary", "primary": True, "value": value} | cost)
    return rows


def summary_table(cells: pd.DataFrame) -> pd.DataFrame:
    """summary.csv: over the seeds of each setting."""
    keys = ["setting", "model", "shown", "domain", "metric", "primary"]
    rows = []
    for key, own in cells.groupby(keys, sort=False):
        found = interval(own["value"].tolist())
        more = {name: own[name].mean() for name in ("worst_site", "gini", "steps", "megabytes", "seconds")}
        rows.append(dict(zip(keys, key, strict=True)) | found._asdict() | more)
    return pd.DataFrame(rows).rename(columns={"count": "seeds"})


def shown_scores(cells: pd.DataFrame) -> pd.DataFrame:
    """Primary scores of the shown models: index (domain, seed), a column for each setting, in order of appearance."""
    rows = cells[cells["shown"] & cells["primary"]]
    table = rows.pivot(index=["domain", "seed"], columns="setting", values="value")
    return table[list(dict.fromkeys(rows["setting"]))].reindex(list(dict.fromkeys(rows["domain"])), level="domain")


def pairs_table(cells: pd.DataFrame) -> pd.DataFrame:
    """pairs.csv: every two settings, every domain; `left` minus `right`, Holm over all rows of the table.

    `better`: the setting whose score is higher where the interval excludes zero; empty where it does not.
    """
    scores = shown_scores(cells)
    rows = []
    for left, right in combinations(scores.columns, 2):
        for domain in scores.index.unique("domain"):
            own = scores.loc[domain]
            found = paired(own[left].tolist(), own[right].tolist())
            excludes = found.low > 0 or found.high < 0
            better = (left if found.mean > 0 else right) if excludes and found.count > 1 else ""
            rows.append({"domain": domain, "left": left, "right": right, "better": better} | found._asdict())
    table = pd.DataFrame(rows).rename(columns={"count": "seeds", "mean": "difference"})
    if len(table):
        table["p_t_holm"], table["p_wilcoxon_holm"] = holm(table["p_t"]), holm(table["p_wilcoxon"])
    return table


def transfer_table(cells: pd.DataFrame) -> pd.DataFrame:
    """transfer.csv: what each setting gives against each bound that is among the settings.

    `difference` = score - bound's score, by seed, with its interval; `relative` = mean of difference / bound. Rows of
    domain "all": `relative` is Delta_m, its mean over domains, and `negative` the share of domains whose mean
    difference is below zero (elsewhere 0 or 1). Of a domain without a pair of scores all is NaN and `seeds` 0; the row
    "all" is over the others.
    """
    scores = shown_scores(cells)
    strategies = cells.drop_duplicates("setting").set_index("setting")["strategy"]
    bounds = [setting for setting in scores.columns if strategies[setting] in BOUNDS]
    domains = [domain for domain in scores.index.unique("domain") if domain not in OVER]
    rows = []
    for bound in bounds:
        for setting in (s for s in scores.columns if s != bound):
            own = []
            for domain in domains:
                part = scores.loc[domain]
                found = paired(part[setting].tolist(), part[bound].tolist())
                relative = ((part[setting] - part[bound]) / part[bound].where(part[bound] != 0)).mean()
                row = {"domain": domain, "difference": found.mean, "low": found.low, "high": found.high}
                negative = float(found.mean < 0) if found.count else math.nan
                own.append(row | {"relative": relative, "negative": negative, "seeds": found.count})
            whole = pd.DataFrame(own)
            means = {name: whole[name].mean() for name in ("difference", "relative", "negative")}
            seeds = whole["seeds"][whole["seeds"] > 0].min() if whole["seeds"].any() else 0
            own.append({"domain": "all", **means, "low": math.nan, "high": math.nan, "seeds": seeds})
            rows += [{"setting": setting, "bound": bound} | row for row in own]
    return pd.DataFrame(rows)


def reach_table(runs: list[CellRun], targets: Mapping[str, float] | None = None) -> pd.DataFrame:
    """reach.csv: the first round whose validation score is at the target, what was sent and how long it took by then.

    targets: domain -> score; by default 95 % of the best setting's mean at the end. `reached` is False, and the
    numbers those of the whole run, where it never was: they are censored, not missing. Of a domain without a score on
    validation there is no target, and all of these are empty.
    """
    curves = {run.name: curve_of(run) for run in runs}
    domains = list(dict.fromkeys(d for curve in curves.values() for d in curve.columns if d not in COSTS))
    if targets is None:
        targets = {domain: _target(runs, curves, domain) for domain in domains}
    rows = []
    for run in runs:
        curve = curves[run.name]
        for domain, target in targets.items():
            row = {"cell": run.name, "setting": run.label, "seed": run.seed, "domain": domain, "target": target}
            if math.isnan(target):
                rows.append(row)
                continue
            there = curve.index[curve[domain] >= target]
            at = there[0] if len(there) else curve.index[-1]
            cost = {name: curve.loc[at, name] for name in COSTS}
            rows.append(row | {"reached": bool(len(there)), "rounds": int(at)} | cost)
    table = pd.DataFrame(rows, columns=["cell", "setting", "seed", "domain", "target", "reached", "rounds", *COSTS])
    return table.astype({"reached": "boolean", "rounds": "Int64"})  # which keep their words where some are empty


def _target(runs: list[CellRun], curves: Mapping[str, pd.DataFrame], domain: str) -> float:
    """TARGET_SHARE of the best setting's mean at the end; NaN where no run has a score."""
    last: dict[str, list[float]] = {}
    for run in runs:
        ends = curves[run.name][domain].tail(1)
        if ends.notna().any():
            last.setdefault(run.label, []).append(ends.item())
    return TARGET_SHARE * max((sum(own) / len(own) for own in last.values()), default=math.nan)


COSTS = ("megabytes", "seconds", "virtual_seconds")


def curve_of(run: CellRun) -> pd.DataFrame:
    """Index round; a column for each domain (validation, shown model, primary), and what it cost until then."""
    info, metrics, rounds = run.folder.info, run.folder.metrics, run.folder.rounds
    shown = "personal" if info.get("final_personal") else "global"
    part = metrics[(metrics["scope"] == "domain") & (metrics["split"] == "validation") & (metrics["model"] == shown)]
    wanted = [part["metric"].eq(metric) & part["domain"].eq(domain) for domain, metric in info["primary"].items()]
    rows = part[pd.concat(wanted, axis=1).any(axis=1)]
    table = rows.pivot(index="round", columns="domain", values="value").reindex(columns=list(info["primary"]))
    costs = rounds.set_index("round")
    table["megabytes"] = ((costs["bytes_up"] + costs["bytes_down"]) / 1e6).cumsum()
    table["seconds"] = costs["seconds"].cumsum()
    table["virtual_seconds"] = costs["virtual_seconds"].cumsum()
    return table


def unequal_budgets(cells: pd.DataFrame) -> list[str]:
    """Where strategies, all else equal, took unlike numbers of optimiser steps in a domain: a sentence for each.

    Runs that ended after unlike numbers of rounds (early stopping) are not held against each other.
    """
    rows = cells[cells["shown"] & cells["primary"] & ~cells["domain"].isin(OVER)]
    found = []
    for (_, _, seed, domain), own in rows.groupby(["others", "rounds", "seed", "domain"], sort=False):
        if own["steps"].nunique() > 1:
            each = ", ".join(f"{r.setting} {r.steps:.0f}" for r in own.itertuples())
            found.append(f"seed {seed}, {domain}: {each}")
    return found
