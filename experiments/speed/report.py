"""From measured cells to results: JSON as measured, a table, the demands met or missed, one figure."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Collection
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles

from demands import FASTER, best_ratio, clock_of, demand_rows, milliseconds_a_site, ratios

from fedfm.results.environment import environment

COLUMNS = {  # of a row -> its title
    "workload": "workload", "engine": "engine", "ratio": "times the floor", "low": "lower quartile",
    "high": "upper quartile", "best": "best rounds", "wall_ratio": "by wall", "milliseconds": "ms a site, CPU",
    "operators": "operators a step", "peak_mib": "peak MiB", "start_up": "start-up s",
    "difference": "largest difference", "void": "void because",
}  # fmt: skip
OURS, OTHERS, GOAL = "#0072B2", "#999999", "#D55E00"


def write_report(results: dict, out: Path, quick: bool) -> None:
    """Write speed.json, speed.csv, speed.md, speed.png and speed.svg below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows, demands = summary(results), demand_rows(results)
    made = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "quick": quick, "threads": 1,
        "environment": machine(), "rows": rows, "demands": demands,
    }  # fmt: skip
    (out / "speed.json").write_text(json.dumps(plain(made | results), indent=1) + "\n", encoding="utf-8")
    with (out / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(COLUMNS))
        table.writeheader()
        table.writerows(rows)
    (out / "speed.md").write_text(markdown(rows, demands, results, quick), encoding="utf-8")
    draw(rows, out)


@cache
def machine() -> dict:
    """fedfm's own record of versions and hardware, and the version of pfl: before a report makes the tree differ."""
    found = environment()
    try:
        found["versions"]["pfl"] = metadata.version("pfl")
    except metadata.PackageNotFoundError:
        found["versions"]["pfl"] = None
    return found


def earlier(out: Path, anew: Collection[str]) -> dict:
    """What stands in `out`, of workloads that are not run `anew`. Raises ValueError where nothing stands there, or what
    was measured on another machine or with other versions."""
    file = out / "speed.json"
    if not file.exists():
        raise ValueError(f"{file} is not there: --keep keeps what an earlier run has left; run without it")
    old = json.loads(file.read_text(encoding="utf-8"))
    for what in ("hardware", "versions"):
        if old["environment"][what] != machine()[what]:
            raise ValueError(f"{file} was written on other {what}, whose ratios are others: run all without --keep")
    commit = {"commit": old["environment"].get("commit")}
    return {
        "cells": [commit | cell for cell in old["cells"] if cell["workload"] not in anew],
        "operators": {key: seen for key, seen in old["operators"].items() if key.split()[0] not in anew},
        "exact": {workload: found for workload, found in old["exact"].items() if workload not in anew},
        "notes": old["notes"],
    }


def commits(cells: list[dict]) -> list[str]:
    """A line for each commit at which some of the workloads were measured."""
    found: dict[str, list[str]] = {}
    for workload, commit in dict.fromkeys((cell["workload"], cell.get("commit")) for cell in cells):
        found.setdefault(commit, []).append(workload)
    return [f"At commit {commit[:7]}: {', '.join(names)}." for commit, names in found.items() if commit]


def plain(value):
    """NaN as null, so that every reader of JSON reads it."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summary(results: dict) -> list[dict]:
    """A row for each workload and engine, in the order in which they ran."""
    cells = results["cells"]
    rows = []
    for workload, engine in dict.fromkeys((c["workload"], c["engine"]) for c in cells):
        own = [c for c in cells if (c["workload"], c["engine"]) == (workload, engine)]
        clock = clock_of(engine)
        found = ratios(cells, workload, engine, "floor", clock)
        low, _, high = quantiles(found, n=4) if len(found) > 1 else (found or [None]) * 3
        walls = ratios(cells, workload, engine, "floor", "walls")
        best = best_ratio(cells, workload, engine, "floor", clock)
        cost = milliseconds_a_site(own, "cpus")
        differences = [c["difference"] for c in own if c.get("difference") is not None]  # null: kept of a void one
        rows.append({
            "workload": workload, "engine": engine, "ratio": short(median(found) if found else None),
            "low": short(low), "high": short(high), "best": short(best),
            "wall_ratio": short(median(walls) if walls else None), "milliseconds": short(cost),
            "operators": short(results["operators"].get(f"{workload} {engine}")),
            "peak_mib": max(c["peak_mib"] for c in own), "start_up": short(median(c["start_up"] for c in own)),
            "difference": f"{max(differences):.1e}" if differences else "",
            "void": next((c["void"] for c in own if "void" in c), ""),
        })  # fmt: skip
    return rows


def short(value: float | None) -> float | str:
    """Three digits; nothing where there is nothing."""
    return "" if value is None else float(f"{value:.3g}")


def markdown(rows: list[dict], demands: list[dict], results: dict, quick: bool) -> str:
    """The table that the README quotes."""
    cores, loads = environment()["hardware"]["cores"], [cell["load"] for cell in results["cells"]]
    lines = [
        "Made by `python experiments/speed/run.py`. Generated data; ratios of one machine, rounds taken in turn, one",
        f"compute thread a process, {cores} cores; load {min(loads, default=0):.1f} to {max(loads, default=0):.1f}.",
        "Times the floor: CPU seconds of the plain loop over those of the engine (Ray: wall seconds).",
        *commits(results["cells"]), "",
    ]  # fmt: skip
    lines += ["QUICK RUN: these figures measure nothing.", ""] if quick else []
    lines += table(rows, COLUMNS)
    titles = {"number": "goal", "demand": "demand", "wanted": "wanted", "seen": "seen", "met": ""}
    lines += ["", *table(demands, titles)]
    return "\n".join([*lines, "", *results["notes"]]).rstrip() + "\n"


def table(rows: list[dict], titles: dict[str, str]) -> list[str]:
    """The lines of a Markdown table; `titles`: key of a row -> what stands above its column."""
    head = [f"| {' | '.join(titles.values())} |", f"|{'---|' * len(titles)}"]
    return head + [f"| {' | '.join(str(row[key]) for key in titles)} |" for row in rows]


def draw(rows: list[dict], out: Path) -> None:
    """Times the plain loop, one panel a workload, on a logarithmic axis; what is demanded is a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["ratio"] and row["engine"] != "floor"]
    panels = list(dict.fromkeys(row["workload"] for row in shown))
    if not panels:
        return
    columns = min(3, len(panels))
    count = math.ceil(len(panels) / columns)
    size = (4.2 * columns, 0.4 + 2.6 * count)
    figure, axes = pyplot.subplots(count, columns, figsize=size, squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, workload in zip(axes.flat, panels, strict=False):
        _panel(axis, workload, [row for row in shown if row["workload"] == workload])
    note = "times as fast as the plain loop (orange: the goal; whiskers: quartiles)"
    figure.supxlabel(note, fontsize=9)
    for kind in ("png", "svg"):
        figure.savefig(out / f"speed.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)


def _panel(axis, workload: str, own: list[dict]) -> None:
    names, values = [row["engine"] for row in own], [row["ratio"] for row in own]
    ours = [not name.startswith(("flower", "pfl", "floor")) for name in names]
    axis.barh(names, values, color=[OURS if is_ours else OTHERS for is_ours in ours])
    reach = [[max(r["ratio"] - r["low"], 0) for r in own], [max(r["high"] - r["ratio"], 0) for r in own]]
    axis.errorbar(values, range(len(own)), fmt="none", ecolor="black", capsize=2, xerr=reach)
    goals = [FASTER.get((workload, name, "floor"), (0, None))[1] for name in names]
    for place, (row, goal) in enumerate(zip(own, goals, strict=True)):
        if goal is not None:
            axis.plot([goal, goal], [place - 0.45, place + 0.45], color=GOAL, linewidth=2)
        right = max(row["ratio"], row["high"], goal or 0, 1)
        axis.text(right * 1.08, place, f"{row['ratio']:.3g}x", va="center", fontsize=8)
    axis.set_xscale("log")
    low, high = min([0.2, *values]) * 0.9, max([2, *values, *(goal or 0 for goal in goals)]) * 3
    axis.set_xlim(low, high)
    ticks = [tick for tick in (0.25, 0.5, 1, 2, 4, 10, 30, 100, 300) if low <= tick <= high]
    axis.set_xticks(ticks if high < 20 else [tick for tick in ticks if tick in (1, 10, 100)])
    axis.xaxis.set_major_formatter("{x:g}x")
    axis.minorticks_off()
    axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
    axis.invert_yaxis()
    axis.set_title(workload, loc="left", fontweight="bold")
    axis.spines[["top", "right"]].set_visible(False)
