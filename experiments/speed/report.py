"""From measured cells to results: JSON as measured, a table, the demands met or missed, one figure."""

from __future__ import annotations

import csv
import json
import math
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from fedfm.results.environment import environment

FASTER_THAN = {  # (workload, engine, against): at least this ratio
    ("W2", "k1", "floor"): 0.95, ("W1", "k1", "floor"): 0.90, ("W2t", "k1", "floor"): 1.2,
    ("W2t", "k8", "floor"): 8, ("W2t", "k32", "floor"): 25, ("W2", "auto", "floor"): 1.0,
    ("W2s", "k8", "floor"): 1.4, ("W2xs", "k32", "floor"): 2.5,
    ("W1", "k1", "flower"): 3, ("W2t", "k1", "flower"): 3, ("W2t", "k32", "flower"): 25, ("W2", "k1", "flower"): 1.1,
    ("W3", "k1", "floor"): 1.35, ("W2", "ray2", "ray1"): 1.7,
    ("W4-0", "k8", "k8-uncached"): 100, ("W4-1", "k8", "k8-uncached"): 0.95 * 7 / 2,
    ("W4-2", "k8", "k8-uncached"): 0.95 * 8 / 4, ("W4-3", "k8", "k8-uncached"): 0.95 * 9 / 6,
}  # fmt: skip
OPERATORS_AT_MOST = {"W2t k8": 45, "W2t k32": 12}
COST_AT_MOST = {"auto": 0.5, "ray1": 2.0, "ray2": 2.0}  # milliseconds for an idle site
EXACT = 1e-10


def write_report(results: dict, out: Path, quick: bool) -> None:
    """Write speed.json, speed.csv, speed.md, speed.png and speed.svg below `out`."""
    out.mkdir(parents=True, exist_ok=True)
    rows, demands = summary(results["cells"]), demand_rows(results)
    made = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"), "quick": quick, "environment": environment(),
        "rows": rows, "demands": demands,
    }  # fmt: skip
    (out / "speed.json").write_text(json.dumps(plain(made | results), indent=1) + "\n", encoding="utf-8")
    with (out / "speed.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]) if rows else ["workload"])
        table.writeheader()
        table.writerows(rows)
    (out / "speed.md").write_text(markdown(rows, demands, results["notes"], quick), encoding="utf-8")
    draw(rows, out)


def plain(value):
    """NaN as null, so that every reader of JSON reads it."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def ratios(cells: list[dict], workload: str, engine: str, against: str, clock: str = "walls") -> list[float]:
    """How many times faster `engine` was than `against`, one number for each repetition in which both did the work."""
    by = {(c["engine"], c["repetition"]): c for c in cells if c["workload"] == workload and "void" not in c}
    found = []
    for (name, repetition), cell in sorted(by.items()):
        other = by.get((against, repetition))
        if name == engine and other and cell[clock] and other[clock]:
            found.append(median(other[clock]) / median(cell[clock]))
    return found


def summary(cells: list[dict]) -> list[dict]:
    """A row for each workload and engine."""
    rows = []
    for workload, engine in dict.fromkeys((c["workload"], c["engine"]) for c in cells):
        own = [c for c in cells if (c["workload"], c["engine"]) == (workload, engine)]
        against = ratios(cells, workload, engine, "floor")
        differences = [c["difference"] for c in own if "difference" in c]
        rows.append({
            "workload": workload, "engine": engine,
            "ratio": round(median(against), 2) if against else "",
            "lowest": round(min(against), 2) if against else "", "highest": round(max(against), 2) if against else "",
            "cpu_ratio": round(median(r), 2) if (r := ratios(cells, workload, engine, "floor", "cpus")) else "",
            "peak_mib": max(c.get("peak_mib", 0) for c in own),
            "difference": f"{max(differences):.1e}" if differences else "",
            "ms_per_site": round(median(costs), 3) if (costs := costs_of(own)) else "",
            "void": next((c["void"] for c in own if "void" in c), ""),
        })  # fmt: skip
    return rows


def costs_of(cells: list[dict]) -> list[float]:
    """Milliseconds for each idle site, of the cells that measured them."""
    return [cell["milliseconds_per_site"] for cell in cells if "milliseconds_per_site" in cell]


def demand_rows(results: dict) -> list[dict]:
    """Every demand that was measured: what was wanted, what was seen, met or missed."""
    cells, rows = results["cells"], []
    for (workload, engine, against), wanted in FASTER_THAN.items():
        if found := ratios(cells, workload, engine, against):
            rows.append(
                demand(
                    f"{workload}: {engine} over {against}",
                    f">= {wanted:.3g}x",
                    median(found),
                    median(found) >= wanted,
                    "x",
                )
            )
    for key, wanted in OPERATORS_AT_MOST.items():
        if (seen := results["operators"].get(key)) is not None:
            rows.append(demand(f"{key}: operators of a site step", f"<= {wanted}", seen, seen <= wanted))
    for engine, wanted in COST_AT_MOST.items():
        costs = [
            c["milliseconds_per_site"]
            for c in cells
            if c["workload"] == "S1" and c["engine"] == engine and "milliseconds_per_site" in c
        ]
        if costs:
            rows.append(
                demand(f"S1: {engine}, an idle site", f"<= {wanted} ms", median(costs), median(costs) <= wanted, " ms")
            )
    for workload, found in results["exact"].items():
        for engine, seen in found.items():
            rows.append(
                demand(f"{workload}: {engine}, float64 difference to the floor", f"<= {EXACT:.0e}", seen, seen <= EXACT)
            )
    for workload in ("W1", "W2", "W2t"):
        peaks = {c["engine"]: c["peak_mib"] for c in cells if c["workload"] == workload and "void" not in c}
        if "k1" in peaks and peaks.get("flower"):
            share = peaks["k1"] / peaks["flower"]
            rows.append(demand(f"{workload}: memory of k1 over stock Flower's", "<= 0.5", share, share <= 0.5))
    return rows


def demand(name: str, wanted: str, seen: float, met: bool, unit: str = "") -> dict:
    return {"demand": name, "wanted": wanted, "seen": f"{seen:.3g}{unit}", "met": "met" if met else "MISSED"}


def markdown(rows: list[dict], demands: list[dict], notes: list[str], quick: bool) -> str:
    """The table that the README quotes."""
    head = "Made by `python experiments/speed/run.py`; the data are generated, the ratios are those of one machine."
    lines = [head, "", *(["QUICK RUN: these figures measure nothing.", ""] if quick else [])]
    lines += _table(rows, {
        "workload": "workload", "engine": "engine", "ratio": "times the floor", "lowest": "lowest",
        "highest": "highest", "cpu_ratio": "by CPU seconds", "peak_mib": "peak MiB",
        "difference": "largest difference", "ms_per_site": "ms a site", "void": "void because",
    })  # fmt: skip
    lines += ["", *_table(demands, {"demand": "demand", "wanted": "wanted", "seen": "seen", "met": ""})]
    return "\n".join([*lines, "", *notes]).rstrip() + "\n"


def _table(rows: list[dict], titles: dict[str, str]) -> list[str]:
    head = [f"| {' | '.join(titles.values())} |", f"|{'---|' * len(titles)}"]
    return head + [f"| {' | '.join(str(row[key]) for key in titles)} |" for row in rows]


def draw(rows: list[dict], out: Path) -> None:
    """Ratio to the plain loop, one panel a workload, on a logarithmic axis; the demand is a mark."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = [
        w for w in dict.fromkeys(r["workload"] for r in rows) if any(r["workload"] == w and r["ratio"] for r in rows)
    ]
    if not panels:
        return
    columns = min(3, len(panels))
    count = math.ceil(len(panels) / columns)
    figure, axes = pyplot.subplots(
        count, columns, figsize=(4.2 * columns, 2.6 * count), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, workload in zip(axes.flat, panels, strict=False):
        own = [r for r in rows if r["workload"] == workload and r["ratio"] and r["engine"] != "floor"]
        names, values = [r["engine"] for r in own], [r["ratio"] for r in own]
        colors = ["#0072B2" if n[0] in "kar" else "#999999" for n in names]
        axis.barh(names, values, color=colors)
        axis.errorbar(values, range(len(own)), fmt="none", ecolor="black", capsize=2, xerr=[
            [r["ratio"] - r["lowest"] for r in own], [r["highest"] - r["ratio"] for r in own]])  # fmt: skip
        for place, name in enumerate(names):
            if (goal := FASTER_THAN.get((workload, name, "floor"))) is not None:
                axis.plot([goal, goal], [place - 0.45, place + 0.45], color="#D55E00", linewidth=2)
            axis.text(max(values[place], 1) * 1.05, place, f"{values[place]:.2g}x", va="center", fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(min([0.2, *values]) * 0.9, max([2, *values]) * 2.2)
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.invert_yaxis()
        axis.set_title(workload, loc="left", fontweight="bold")
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("times as fast as the plain loop (orange: demanded, whiskers: lowest and highest)", fontsize=9)
    for kind in ("png", "svg"):
        figure.savefig(out / f"speed.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)
