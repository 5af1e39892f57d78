"""`report.html` of a comparison; every number in it stands in one of the CSV files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from fedfm.results.comparison import BOUNDS, OVER, CellRun
from fedfm.results.files import replace_text
from fedfm.results.page import figure, page, paragraph, table
from fedfm.results.provenance import configuration, data, environment
from fedfm.results.statistics import LEVEL
from fedfm.results.tables import main_table

FIGURES = {
    "final": "Test scores by domain: points are means over seeds with their 95 % intervals, lines are bounds.",
    "curves": "Validation scores against rounds: mean over seeds, band: 95 % interval.",
    "worst": "Mean over domains against the worst domain, test; bars: 95 % intervals.",
    "traffic": "Validation scores against megabytes sent, up and down, over all sites.",
    "labels": "Training labels at each site, of the first run.",
    "transfer": "Test scores minus those of a bound, mean over seeds; red: the setting's is lower.",
}
PAIR_COLUMNS = ["domain", "left", "right", "difference", "low", "high", "seeds", "p_t", "p_t_holm",
                "p_wilcoxon_holm", "better"]  # fmt: skip


def write_comparison_report(
    root: Path, runs: list[CellRun], tables: Mapping[str, pd.DataFrame], failed: Mapping[str, str], unequal: list[str]
) -> Path:
    """Write `<root>/report.html`; returns its path."""
    main, _ = main_table(tables["summary"])
    figures = "".join(figure(root / "figures" / f"{name}.svg", caption) for name, caption in FIGURES.items())
    first = paragraph(f"Of the first run, {runs[0].name}.")
    sections = [
        ("scores", "Scores", paragraph(NOTE, "note") + table(main)),
        ("figures", "Figures", figures),
        ("differences", "Differences", _differences(tables["pairs"])),
        ("transfer", "Transfer", _transfer(tables["transfer"])),
        ("reach", "Cost to the target", _reach(tables["reach"])),
        ("budget", "Budget", _budget(tables["cells"], unequal)),
        ("failures", "Failures", table([{"cell": cell, "reason": reason} for cell, reason in failed.items()])),
        ("runs", "Runs", table([{"cell": run.name, "folder": run.folder.path.name} for run in runs])),
        ("configuration", "Configuration", first + configuration(runs[0].folder)),
        ("data", "Data", data(runs[0].folder)),
        ("environment", "Environment", environment(runs[0].folder)),
    ]  # fmt: skip
    title = f"Comparison of {', '.join(dict.fromkeys(run.label for run in runs))}"
    html = page(title if len(title) < 90 else "Comparison", summary_sentence(tables, failed), sections)
    replace_text(root / "report.html", html)
    return root / "report.html"


NOTE = (
    "Primary metric on test, mean ± standard deviation over seeds. A personal model is scored on its own site's "
    "examples; a global one on the same examples, pooled over the domain's sites."
)


def summary_sentence(tables: Mapping[str, pd.DataFrame], failed: Mapping[str, str]) -> str:
    """What came out, in plain words."""
    summary, cells = tables["summary"], tables["cells"]
    rows = summary[(summary["domain"] == "mean") & summary["shown"]]
    over = rows.set_index("setting")["mean"].dropna()
    bounds = set(cells[cells["strategy"].isin(BOUNDS)]["setting"])
    federated = over[[setting for setting in over.index if setting not in bounds]]
    settings, seeds = cells["setting"].nunique(), cells["seed"].nunique()
    words = [f"{settings} settings, {seeds} {'seed' if seeds == 1 else 'seeds'}."]
    ranked = federated if len(federated) else over
    if len(ranked):
        best, of = ranked.idxmax(), " of the federations" if len(bounds) else ""
        words.append(f"Highest mean over domains{of}: {best} ({over[best]:.3f}).")
        words += _against_bounds(tables["transfer"], tables["pairs"], best)
    else:
        words.append("No domain has a score.")
    if undefined := _undefined(summary):
        words.append(f"The primary score of {', '.join(undefined)} is undefined on its test examples.")
    if seeds < 3:
        words.append("With fewer than three seeds no difference can be told from chance.")
    if failed:
        count = "1 run failed and is" if len(failed) == 1 else f"{len(failed)} runs failed and are"
        words.append(f"{count} missing from all tables.")
    return " ".join(words)


def _undefined(summary: pd.DataFrame) -> list[str]:
    """Domains in which no setting has a primary score."""
    known = summary[summary["primary"] & ~summary["domain"].isin(OVER)].groupby("domain", sort=False)["mean"].count()
    return known[known == 0].index.tolist()


def _against_bounds(transfer: pd.DataFrame, pairs: pd.DataFrame, setting: str) -> list[str]:
    """A sentence for each bound: where the setting's interval excludes zero, and what Holm's correction says to it."""
    words = []
    for bound in dict.fromkeys(transfer["bound"]) if len(transfer) else ():
        own = transfer[(transfer["bound"] == bound) & (transfer["setting"] == setting) & (transfer["domain"] != "all")]
        if not len(own):
            continue
        both = pairs[pairs["left"].isin((setting, bound)) & pairs["right"].isin((setting, bound))]
        p = both.set_index("domain")["p_t_holm"]
        lost, won = ([d + caution(p[d]) for d in own[which]["domain"]] for which in (own["high"] < 0, own["low"] > 0))
        words.append(f"Against {bound}: better in {_list(won)}, worse in {_list(lost)}, else undecided.")
    return words


def caution(p_holm: float) -> str:
    """What must stand beside a difference whose uncorrected interval excludes zero; "" where Holm's p agrees."""
    return "" if p_holm < 1 - LEVEL else f" (by its uncorrected interval alone: Holm p = {p_holm:.2g})"


def _list(names: list[str]) -> str:
    return ", ".join(names) or "no domain"


def _differences(pairs: pd.DataFrame) -> str:
    if not len(pairs):
        return ""
    said = (
        "left minus right, paired by seed. low, high, p_t and better take each row for itself: of many rows some "
        f"exclude zero by chance. p_t_holm and p_wilcoxon_holm are corrected for all {len(pairs)} rows (Holm)."
    )
    return paragraph(said, "note") + table(pairs[PAIR_COLUMNS])


def _transfer(transfer: pd.DataFrame) -> str:
    if not len(transfer):
        return paragraph(f"None of the settings is a bound ({', '.join(BOUNDS)}).", "note")
    said = "Test score minus the bound's, paired by seed. relative of domain all: Delta_m; negative: share of domains."
    return paragraph(said, "note") + table(transfer)


def _reach(reach: pd.DataFrame) -> str:
    by = reach.groupby(["setting", "domain"], sort=False)
    rows = by.agg(
        target=("target", "first"), seeds=("seed", "size"), reached=("reached", lambda own: own.sum(min_count=1)),
        rounds=("rounds", "mean"), megabytes=("megabytes", "mean"), seconds=("seconds", "mean"),
    ).reset_index()  # fmt: skip
    said = (
        "Means over seeds; where a run did not reach the target, its whole length counts (censored). A domain that has "
        "no score on validation has no target."
    )
    return paragraph(said, "note") + table(rows)


def _budget(cells: pd.DataFrame, unequal: list[str]) -> str:
    rows = cells[cells["shown"] & cells["primary"] & ~cells["domain"].isin(OVER)]
    steps = rows.groupby(["setting", "domain"], sort=False)["steps"].mean().unstack(sort=False).reset_index()
    verdict = paragraph(f"Unequal: {'; '.join(unequal)}", "bad") if unequal else paragraph("Equal.")
    return paragraph("Optimiser steps of a run, over all sites of the domain.", "note") + verdict + table(steps)
