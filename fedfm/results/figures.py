"""Figures of one run: scores against rounds, labels at the sites, traffic. Each is a PNG, an SVG and the CSV it shows.

Drawn without pyplot and without a display. The same run folder gives the same bytes: no dates, fixed SVG ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedfm.profiling import phase
from fedfm.results.lines import shorten
from fedfm.results.run_folder import RunFolder
from fedfm.results.style import OTHER, PALETTE, SHADES, drawing, line_style

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))
NAMED_LINES = 10  # more sites than this are drawn, but not named
DRAWN_SITES = 30  # more sites than this are in the CSV only


@dataclass(frozen=True)
class End:
    """Where a line ends, and what it is called there."""

    round: float
    value: float
    name: str
    colour: str


@phase("write")
def draw_figures(folder: RunFolder) -> list[Path]:
    """Draw what the run has numbers for into `<run>/figures/`; return the files written.

    `metric_<domain>`, `overview`, `labels`, `traffic`, each `.png`, `.svg`, `.csv`. run.json gives the domains'
    primary metrics ("primary": {domain: metric}) and the sites' training labels ("sites": {site: {"domain": ...,
    "label_counts": {split: {label: count}}}}).
    """
    info, metrics = folder.info, folder.metrics
    primary: dict[str, str] = info.get("primary") or {}
    generated = [domain for domain in primary if domain in (info.get("generated") or ())]
    target = folder.path / "figures"
    target.mkdir(exist_ok=True)
    with drawing():
        drawn = []
        for domain, name in primary.items():
            drawn.append((f"metric_{domain}", *_metric_figure(metrics, domain, name)))
            stamp(drawn[-1][1], [domain] if domain in generated else [])
        drawn.append(("overview", *_overview_figure(metrics, primary)))
        drawn.append(("labels", *labels_figure(info.get("sites") or {}, list(primary))))
        for _, figure, _ in drawn[-2:]:
            stamp(figure, generated)
        drawn.append(("traffic", *_traffic_figure(folder.rounds)))
        return [path for name, figure, data in drawn if len(data) for path in save_figure(target / name, figure, data)]


def stamp(figure: Figure, generated: Sequence[str]) -> None:
    """Say under a figure which of its domains hold generated data: a picture travels without its run folder."""
    if generated:
        words = f"generated data: {', '.join(shorten(domain, 24) for domain in generated)}"
        figure.supxlabel(", ".join(filter(None, [figure.get_supxlabel(), words])), fontsize=8, color="#555555")


def save_figure(stem: Path, figure: Figure, data: pd.DataFrame) -> list[Path]:
    """`<stem>.png`, `.svg`, and `.csv`, which holds what they show."""
    png, svg, table = (stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg", "csv"))
    figure.set_dpi(150)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # the layout stands; `savefig` would draw twice more for each file to find it
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": "fedfm"})
    data.to_csv(table, index=False, lineterminator="\n")
    return [png, svg, table]


def new_figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _metric_figure(metrics: pd.DataFrame, domain: str, metric: str) -> tuple[Figure, pd.DataFrame]:
    """The domain's primary metric: pooled validation, its sites, and the test score at the end."""
    data = metrics[(metrics["domain"] == domain) & (metrics["metric"] == metric) & (metrics["split"] != "train")]
    figure = new_figure(6.4, 3.8)
    axes = _score_axes(figure, f"{shorten(domain, 24)}: {metric}", metric)
    validation = data[data["split"] == "validation"]
    ends: list[End] = []
    sites = list(validation[validation["scope"] == "site"].groupby("name"))
    named = len(sites) <= NAMED_LINES
    for number, (site, rows) in enumerate(sites):
        colour, dash = line_style(number + 1) if named else (OTHER, "-")
        axes.plot(rows["round"], rows["value"], color=colour, linestyle=dash, linewidth=1, marker="o", markersize=2)
        ends += _end(rows, shorten(site, 24), colour) if named else []
    pooled = validation[validation["scope"] == "domain"]
    axes.plot(pooled["round"], pooled["value"], color=PALETTE[0], linewidth=2.4, marker="o", markersize=4.5)
    ends += _end(pooled, "all sites", PALETTE[0])
    test = data[(data["split"] == "test") & (data["scope"] == "domain")]
    note = "lines: validation" if named else f"lines: validation, thin: {len(sites)} sites"
    if len(test):
        axes.plot(test["round"], test["value"], color="black", marker="*", markersize=12, linestyle="", clip_on=False)
        ends += _end(test, "test", "black", digits=True)
        note += ", star: test"
    _name_lines(axes, ends)
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure, data[["round", "scope", "name", "split", "metric", "value", "num_examples", "model"]]


def _overview_figure(metrics: pd.DataFrame, primary: dict[str, str]) -> tuple[Figure, pd.DataFrame]:
    """Every domain's primary metric on validation, their mean and the worst of them."""
    validation = metrics[metrics["split"] == "validation"]
    wanted = (validation["scope"] == "domain") & (validation["metric"] == validation["domain"].map(primary))
    federation = (validation["scope"] == "federation") & validation["metric"].isin(("mean", "worst"))
    data = validation[wanted | federation]
    figure = new_figure(6.4, 3.8)
    axes = _score_axes(figure, "validation, every domain", "primary metric")
    ends: list[End] = []
    for number, (domain, metric) in enumerate(primary.items()):
        rows = data[data["domain"] == domain]
        colour, dash = line_style(number)
        axes.plot(rows["round"], rows["value"], color=colour, linestyle=dash, linewidth=1.6, marker="o", markersize=3.5)
        ends += _end(rows, f"{shorten(domain, 24)} {metric}", colour)
    for name, colour, dash in (("worst", "#777777", "--"), ("mean", "black", "-")):
        rows = data[(data["scope"] == "federation") & (data["metric"] == name)]
        axes.plot(rows["round"], rows["value"], color=colour, linestyle=dash, linewidth=2.4, marker="o", markersize=3)
        ends += _end(rows, name, colour)
    _name_lines(axes, ends)
    return figure, data[["round", "scope", "name", "domain", "metric", "value", "num_examples", "model"]]


def _score_axes(figure: Figure, title: str, label: str) -> Axes:
    axes = figure.add_subplot()
    axes.set_title(title, fontweight="bold")
    axes.set(xlabel="round", ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return axes


def _end(rows: pd.DataFrame, name: str, colour: str, digits: bool = False) -> list[End]:
    """The last point of a line; none for a line without points."""
    rows = rows.dropna(subset="value")
    if rows.empty:
        return []
    last = rows.iloc[-1]
    return [End(last["round"], last["value"], f"{name} {last['value']:.3f}" if digits else name, colour)]


def _name_lines(axes: Axes, ends: Sequence[End]) -> None:
    """Names to the right of the lines, moved apart where they would overlap."""
    low, high = axes.get_ylim()
    points = axes.get_position().height * axes.figure.get_figheight() * 72
    heights = spread([end.value for end in ends], gap=10.5 * (high - low) / points)
    for end, height in zip(ends, heights, strict=True):
        axes.annotate(
            end.name,
            xy=(end.round, end.value),
            xytext=(1.03, height),
            textcoords=axes.get_yaxis_transform(),  # x as a share of the axes, y in data
            color=end.colour,
            va="center",
            fontsize=8.5,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": end.colour,
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkA": 2,
                "shrinkB": 5,
            },
        )
    axes.set_ylim(low, high)


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """`heights` moved as little as the order allows so that neighbours are at least `gap` apart (least squares).

    With y_i = height_i - i gap in rising order this is isotonic regression, solved by pooling adjacent violators
    (Ayer et al., 1955, https://doi.org/10.1214/aoms/1177728423).
    """
    order = np.argsort(heights, kind="stable")
    pools: list[tuple[float, int]] = []
    for rank, index in enumerate(order):
        total, count = heights[index] - rank * gap, 1
        while pools and pools[-1][0] / pools[-1][1] >= total / count:
            before = pools.pop()
            total, count = total + before[0], count + before[1]
        pools.append((total, count))
    levels = [total / count for total, count in pools for _ in range(count)]
    moved = np.empty(len(order))
    moved[order] = np.array(levels) + gap * np.arange(len(order))
    return moved.tolist()


def labels_figure(sites: dict[str, dict], domains: Sequence[str]) -> tuple[Figure, pd.DataFrame]:
    """Training labels at every site, one panel a domain, in the order of `domains`."""
    rows = [
        {"domain": site["domain"], "site": name, "label": label, "count": count}
        for name, site in sites.items()
        for label, count in (site.get("label_counts") or {}).get("train", {}).items()
    ]
    data = pd.DataFrame(rows, columns=["domain", "site", "label", "count"])
    parts = dict(list(data.groupby("domain", sort=False)))
    panels = [(domain, _label_table(parts[domain])) for domain in dict.fromkeys([*domains, *parts]) if domain in parts]
    heights = [0.9 + max(0.26 * len(table), 0.19 * table.shape[1]) for _, table in panels] or [1.0]
    figure = new_figure(6.8, sum(heights))
    grid = figure.add_gridspec(max(1, len(panels)), 1, height_ratios=heights)
    for number, (domain, table) in enumerate(panels):
        axes = figure.add_subplot(grid[number])
        _stack(axes, table)
        hidden = data.loc[data["domain"] == domain, "site"].nunique() - len(table)
        axes.set_title(f"{domain}{f' ({hidden} more sites in the CSV)' if hidden else ''}", fontweight="bold")
    return figure, data


def _label_table(part: pd.DataFrame, most: int = 8) -> pd.DataFrame:
    """Counts [sites, labels], the `most` frequent labels and "other"; of tagged sentences only entities."""
    sites = part["site"].unique()
    part = part[part["label"] != "sentences"]
    table = part.pivot_table(index="site", columns="label", values="count", aggfunc="sum", fill_value=0, sort=False)
    if table.shape[1] > most:
        frequent = table.sum().sort_values(ascending=False, kind="stable").index[:most]
        rest = table.drop(columns=frequent)
        table = table[frequent].assign(**{f"other ({rest.shape[1]} labels)": rest.sum(axis=1)})
    return table.reindex(sites[:DRAWN_SITES], fill_value=0)


def _stack(axes: Axes, table: pd.DataFrame) -> None:
    start = np.zeros(len(table))
    for number, label in enumerate(table.columns):
        colour = SHADES[number] if number < len(SHADES) else OTHER
        width = table[label].to_numpy()
        look = {"color": colour, "height": 0.72, "edgecolor": "white", "linewidth": 0.4}
        axes.barh(np.arange(len(table)), width, left=start, label=shorten(str(label), 28), **look)
        start = start + width
    axes.set_yticks(np.arange(len(table)), [shorten(site, 24) for site in table.index])
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("training labels")
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.03), frameon=False, fontsize=8, handlelength=1, borderpad=0)


def _traffic_figure(rounds: pd.DataFrame) -> tuple[Figure, pd.DataFrame]:
    """Bytes over all sites, summed up to each round."""
    data = rounds[["round", "bytes_down", "bytes_up"]].copy()
    so_far = data[["bytes_down", "bytes_up"]].cumsum()
    unit, size = next(((u, b) for u, b in UNITS if so_far.to_numpy().max(initial=0) >= b), UNITS[-1])
    ways = (("bytes_down", "to the sites", PALETTE[0]), ("bytes_up", "from the sites", PALETTE[1]))
    figure = new_figure(6.4, 3.2)
    axes = _score_axes(figure, "sent up to each round, all sites", unit)
    ends: list[End] = []
    for column, name, colour in ways:
        data[f"{column}_so_far"] = so_far[column]
        line = pd.DataFrame({"round": data["round"], "value": so_far[column] / size})
        axes.plot(line["round"], line["value"], color=colour, linewidth=2, marker="o", markersize=3.5)
        ends += _end(line, name, colour)
    axes.set_ylim(bottom=0)
    _name_lines(axes, ends)
    return figure, data
