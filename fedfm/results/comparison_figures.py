"""Figures of a comparison, each a PNG, an SVG and the CSV that drew it.

curves     validation score against round, a panel a domain; line: mean over seeds, band: 95 % interval
final      test score by domain and setting, mean and interval; bounds as lines across
worst      mean over domains against the worst domain
labels     training labels at each site, of the first run
traffic    validation score against megabytes sent
transfer   difference to a bound, domain by setting
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedfm.results.comparison import BOUNDS, OVER, CellRun, curve_of
from fedfm.results.figures import labels_figure, new_figure, save_figure, stamp
from fedfm.results.lines import shorten
from fedfm.results.statistics import interval
from fedfm.results.style import DASHES, drawing, line_style

MARKS = "osD^vP*X"


def draw_comparison(
    target: Path, runs: list[CellRun], cells: pd.DataFrame, summary: pd.DataFrame, transfer: pd.DataFrame
) -> list[Path]:
    """Draw what there are numbers for into `target`; returns the files written."""
    target.mkdir(parents=True, exist_ok=True)
    styles = styles_of(list(dict.fromkeys(cells["setting"])))
    curves, info = mean_curves(runs), runs[0].folder.info
    generated = sorted({d for run in runs for d in run.folder.info.get("generated") or ()})
    shown = summary[summary["shown"] & summary["primary"]]
    bounds = set(cells[cells["strategy"].isin(BOUNDS)]["setting"])
    with drawing():
        drawn = [
            ("curves", _curves(curves, "round", styles), curves),
            ("final", _final(shown, bounds, styles), shown),
            ("worst", _mean_and_worst(shown, styles), shown[shown["domain"].isin(OVER)]),
            ("labels", *labels_figure(info.get("sites") or {}, list(info["primary"]))),
            ("traffic", _curves(curves[curves["megabytes"] > 0], "megabytes", styles), curves),
        ]
        if len(transfer):
            drawn.append(("transfer", _transfer(transfer, list(styles)), transfer))
        for _, figure, _ in drawn:
            stamp(figure, generated)
        return [path for name, figure, data in drawn if len(data) for path in save_figure(target / name, figure, data)]


def styles_of(settings: list[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, dash and mark of each setting, told apart also without colour."""
    return {name: (*line_style(i), MARKS[i % len(MARKS)]) for i, name in enumerate(settings)}


def mean_curves(runs: list[CellRun]) -> pd.DataFrame:
    """Over the seeds of each setting: setting, domain, round, mean, low, high, megabytes (mean)."""
    tables = [curve_of(run).assign(setting=run.label) for run in runs]
    domains = list(dict.fromkeys(d for run in runs for d in run.folder.info["primary"]))
    rows = []
    for (setting, round), own in pd.concat(tables).groupby(["setting", "round"], sort=False):
        for domain in domains:
            found = interval(own[domain].tolist())
            point = {"mean": found.mean, "low": found.low, "high": found.high, "megabytes": own["megabytes"].mean()}
            rows.append({"setting": setting, "domain": domain, "round": round, **point})
    columns = ["setting", "domain", "round", "mean", "low", "high", "megabytes"]
    return pd.DataFrame(rows, columns=columns).dropna(subset="mean")


def _curves(curves: pd.DataFrame, against: str, styles: dict) -> Figure:
    domains = list(dict.fromkeys(curves["domain"]))
    figure = new_figure(3.1 * max(len(domains), 1) + 1.6, 3.4)
    panels = figure.subplots(1, max(len(domains), 1), squeeze=False)[0]
    for axes, domain in zip(panels, domains, strict=False):
        axes.set_title(shorten(domain, 24))
        for setting, (colour, dash, mark) in styles.items():
            own = curves[(curves["setting"] == setting) & (curves["domain"] == domain)].sort_values("round")
            if not len(own):
                continue
            axes.plot(own[against], own["mean"], dash, color=colour, marker=mark, markersize=3, label=setting)
            if against == "round":
                axes.fill_between(own["round"], own["low"], own["high"], color=colour, alpha=0.15, linewidth=0)
        axes.set_xlabel({"round": "round", "megabytes": "MB sent, up and down"}[against])
        axes.set_ylim(*_scores_only(axes.get_ylim()))
        if against == "round":
            axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(domains):
        panels[0].set_ylabel("validation score (primary metric)")
        _legend(figure, panels)
    return figure


def _scores_only(limits: tuple[float, float]) -> tuple[float, float]:
    """No more than the range of a score: an interval of few seeds may be wider than that."""
    return max(limits[0], -0.03), min(limits[1], 1.03)


def _legend(figure: Figure, panels) -> None:
    known = {}
    for axes in panels:
        known |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), [shorten(k, 28) for k in known], loc="outside right center", frameon=False)


def _final(shown: pd.DataFrame, bounds: set[str], styles: dict) -> Figure:
    domains = list(dict.fromkeys(shown["domain"]))
    settings = [name for name in styles if name not in bounds]
    figure = new_figure(1.3 * len(domains) + 3.2, 3.8)
    axes = figure.subplots()
    for number, name in enumerate(settings):
        colour, _, mark = styles[name]
        own = shown[shown["setting"] == name].set_index("domain").reindex(domains)
        offset = (number - (len(settings) - 1) / 2) * min(0.14, 0.7 / max(len(settings), 1))
        error = np.nan_to_num(np.stack([own["mean"] - own["low"], own["high"] - own["mean"]]))
        place = np.arange(len(domains)) + offset
        axes.errorbar(place, own["mean"], error, fmt=mark, color=colour, capsize=2, markersize=5, label=name)
    for name in (one for one in styles if one in bounds):
        colour, _, _ = styles[name]
        own = shown[shown["setting"] == name].set_index("domain").reindex(domains)
        dash = DASHES[BOUNDS.index(name) % len(DASHES)] if name in BOUNDS else "-"
        for place, value in enumerate(own["mean"]):
            label = name if place == 0 else None
            axes.hlines(value, place - 0.42, place + 0.42, color=colour, linestyle=dash, linewidth=1.6, label=label)
    axes.set_xticks(range(len(domains)), [shorten(domain, 14) for domain in domains])
    axes.set_ylabel("test score (primary metric)")
    axes.set_ylim(*_scores_only(axes.get_ylim()))
    axes.set_title("Final scores; points: mean and 95 % interval over seeds, lines: bounds", fontsize=9)
    _legend(figure, [axes])
    return figure


def _mean_and_worst(shown: pd.DataFrame, styles: dict) -> Figure:
    figure = new_figure(5.6, 3.6)
    axes = figure.subplots()
    over = {name: shown[shown["domain"] == name].set_index("setting") for name in OVER}
    for name, (colour, _, mark) in styles.items():
        if name not in over["mean"].index:
            continue
        x, y = over["mean"].loc[name], over["worst"].loc[name]
        spread = [[_half(x)], [_half(x)]], [[_half(y)], [_half(y)]]
        axes.errorbar(
            x["mean"], y["mean"], xerr=spread[0], yerr=spread[1], fmt=mark, color=colour, capsize=2, label=name
        )
    axes.set_xlabel("mean of the domains' test scores")
    axes.set_ylabel("worst domain's test score")
    axes.set_xlim(*_scores_only(axes.get_xlim()))
    axes.set_ylim(*_scores_only(axes.get_ylim()))
    _legend(figure, [axes])
    return figure


def _half(row: pd.Series) -> float:
    half = (row["high"] - row["low"]) / 2
    return half if math.isfinite(half) else 0.0


def _transfer(transfer: pd.DataFrame, order: list[str]) -> Figure:
    bounds = list(dict.fromkeys(transfer["bound"]))
    settings = [name for name in order if name in set(transfer["setting"])]
    domains = [domain for domain in dict.fromkeys(transfer["domain"]) if domain != "all"]
    figure = new_figure(2.2 + 2.6 * len(bounds), 1.6 + 0.34 * len(settings))
    panels = figure.subplots(1, len(bounds), squeeze=False, sharey=True)[0]
    largest = float(transfer["difference"].abs().max())
    largest = largest if largest > 0 else 1.0  # NaN where nothing was measured
    for axes, bound in zip(panels, bounds, strict=True):
        own = transfer[(transfer["bound"] == bound) & (transfer["domain"] != "all")]
        table = own.pivot(index="setting", columns="domain", values="difference").reindex(settings)[domains]
        image = axes.imshow(table, cmap="RdBu", vmin=-largest, vmax=largest, aspect="auto")
        for (row, column), value in np.ndenumerate(table.to_numpy()):
            if settings[row] == bound:
                axes.text(column, row, "-", ha="center", va="center", color="#999999")
            elif math.isfinite(value):
                ink = "white" if abs(value) > 0.6 * largest else "black"
                axes.text(column, row, f"{value:+.3f}", ha="center", va="center", fontsize=7, color=ink)
        axes.set_xticks(range(len(domains)), [shorten(d, 10) for d in domains])
        axes.set_yticks(range(len(settings)), [shorten(s, 24) for s in settings])
        axes.set_title(f"against {bound}", fontsize=9)
        axes.grid(False)
    figure.colorbar(image, ax=list(panels), label="test score minus the bound's", shrink=0.8)
    return figure
