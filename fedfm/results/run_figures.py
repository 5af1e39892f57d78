"""More figures of one run, for its report: drift, timeline, and what became of the test examples.

bytes                score of each domain on validation, by what was sent until then
drift                norm of each site's update, and its cosine to the mean, by round
timeline             seconds that each site worked, by round
confusion_<domain>   test: truth by prediction (classes)
entities_<domain>    test: precision, recall and F1 of each entity type (tags)
calibration          test: how often a prediction was right, by how probable it was said to be (classes)
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedfm.results.figures import DRAWN_SITES, new_figure, save_figure, stamp
from fedfm.results.lines import shorten
from fedfm.results.predictions import load_items
from fedfm.results.run_folder import RunFolder
from fedfm.results.style import PALETTE, drawing, line_style

BINS = 10
DRAWN_CLASSES = 30  # of a figure: it grows with their square; more are in the CSV only
PHASES = ["train", "validation", "test"]
Drawn = tuple[str, Figure, pd.DataFrame]


def draw_run_figures(folder: RunFolder) -> list[Path]:
    """Draw what the run has numbers for into `<run>/figures/`, PNG, SVG and CSV; returns the files written."""
    target = folder.path / "figures"
    target.mkdir(exist_ok=True)
    info, cards = folder.info, labels_of(folder)
    model = "personal" if info.get("final_personal") else "global"
    generated = info.get("generated") or []
    drawn: list[Drawn] = []
    with drawing():
        drawn += _bytes(folder, model)
        drawn += _drift(folder.metrics)
        drawn += _timeline(folder)
        calibrations = []
        for domain, labels in cards.items():
            items = load_items(folder.path, model, domain)
            if "probabilities" in items:
                drawn.append(_confusion(domain, items, labels))
                calibrations += [calibration(items).assign(domain=domain)] if len(items["labels"]) else []
            elif "spans" in items:
                drawn.append(_entities(domain, items, labels))
        if calibrations:
            drawn.append(_calibration(pd.concat(calibrations), list(info.get("primary") or cards)))
        for _, figure, _ in drawn:
            stamp(figure, generated)
        return [path for name, figure, data in drawn for path in save_figure(target / name, figure, data)]


def draw_contributions(stem: Path, table: pd.DataFrame, metric: str) -> list[Path]:
    """A bar for each site, of the last column of `table` (site, domain, left_out or shapley)."""
    column = table.columns[-1]
    with drawing():
        figure = new_figure(6.4, 1.3 + 0.3 * len(table))
        axes = figure.subplots()
        domains = list(dict.fromkeys(table["domain"]))
        for number, domain in enumerate(domains):
            own = table["domain"] == domain
            colour = PALETTE[number % len(PALETTE)]
            axes.barh(np.flatnonzero(own), table[column][own], 0.7, color=colour, label=shorten(domain, 20))
        axes.set_yticks(range(len(table)), [shorten(site, 20) for site in table["site"]])
        axes.invert_yaxis()
        axes.axvline(0, color="#555555", linewidth=0.8)
        words = {"shapley": "Shapley value", "left_out": "score of all, minus that without the site"}
        axes.set_xlabel(f"{words[column]} ({shorten(metric, 20)}, validation)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
        return save_figure(stem, figure, table)


def labels_of(folder: RunFolder) -> dict[str, list[str]]:
    """Domain -> labels, of a run that has ended."""
    file = folder.path / "model" / "domains.json"
    return {d: card["labels"] for d, card in json.loads(file.read_text()).items()} if file.exists() else {}


def _bytes(folder: RunFolder, model: str) -> list[Drawn]:
    """The primary metric of every domain against megabytes, up and down, over all sites; of one round no line."""
    costs = folder.rounds.set_index("round")
    sent = ((costs["bytes_up"] + costs["bytes_down"]) / 1e6).cumsum()
    primary = folder.info.get("primary") or {}
    rows = folder.metrics.query("scope == 'domain' and split == 'validation' and model == @model")
    rows = rows[rows["metric"] == rows["domain"].map(primary)]
    data = rows[["round", "domain", "metric", "value"]].assign(megabytes=rows["round"].map(sent)).dropna()
    if not sent.max() > 0 or data["round"].nunique() < 2:
        return []
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    for number, (domain, metric) in enumerate(primary.items()):
        own, (colour, dash) = data[data["domain"] == domain], line_style(number)
        if len(own):
            label = f"{shorten(domain, 20)} {metric}"
            axes.plot(own["megabytes"], own["value"], dash, color=colour, marker="o", label=label)
    axes.set_xlabel("MB sent, up and down, all sites")
    axes.set_ylabel("validation score")
    axes.set_title("Scores by what was sent")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return [("bytes", figure, data)]


def _drift(metrics: pd.DataFrame) -> list[Drawn]:
    rows = metrics[metrics["metric"].isin(["update_norm", "cosine_to_mean"]) & (metrics["scope"] == "site")]
    if not len(rows) or rows["name"].nunique() > DRAWN_SITES:
        return []
    data = rows.pivot_table(index=["round", "name", "domain"], columns="metric", values="value").reset_index()
    panels = [column for column in ("update_norm", "cosine_to_mean") if column in data and data[column].notna().any()]
    figure = new_figure(3.4 * len(panels) + 1.6, 3.4)
    titles = {"update_norm": "Norm of the update", "cosine_to_mean": "Cosine to the mean of all updates"}
    for axes, column in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        for number, (site, own) in enumerate(data.groupby("name")):
            colour, dash = line_style(number)
            axes.plot(own["round"], own[column], dash, color=colour, marker="o", markersize=3, label=site)
        axes.set_title(titles[column])
        axes.set_xlabel("round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, [shorten(name, 20) for name in names], loc="outside right center", frameon=False)
    return [("drift", figure, data)]


def _timeline(folder: RunFolder) -> list[Drawn]:
    """Where sites work at the same time (packs), each counts its share."""
    file = folder.path / "events.jsonl"
    events = [json.loads(line) for line in file.read_text().splitlines() if line.endswith("}")] if file.exists() else []
    rows = [e for e in events if e.get("event") == "site-finished" and e.get("seconds") is not None]
    if not rows or len({row["site"] for row in rows}) > DRAWN_SITES:
        return []
    data = pd.DataFrame(rows)[["round", "phase", "site", "seconds"]]
    data = data.groupby(["round", "phase", "site"], as_index=False).last()  # of a resumed round the last counts
    data = data.sort_values(["round", "phase"], key=lambda c: c.map(PHASES.index) if c.name == "phase" else c)
    sites = sorted(data["site"].unique())
    figure = new_figure(6.4, 1.2 + 0.3 * len(sites))
    axes = figure.subplots()
    colours = {"train": PALETTE[0], "validation": PALETTE[4], "test": PALETTE[2]}
    left = np.zeros(len(sites))
    for (_, phase), own in data.groupby(["round", "phase"], sort=False):
        width = own.set_index("site")["seconds"].reindex(sites).fillna(0).to_numpy()
        first = phase if phase not in axes.get_legend_handles_labels()[1] else None
        axes.barh(sites, width, left=left, color=colours.get(phase, "#BBBBBB"), edgecolor="white", linewidth=0.5,
                  label=first)  # fmt: skip
        left += width
    axes.set_yticks(range(len(sites)), [shorten(site, 20) for site in sites])
    axes.invert_yaxis()
    axes.set_xlabel("seconds of work, round after round (white lines part the rounds)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14 + 0.3 / len(sites)), ncols=3, frameon=False)
    return [("timeline", figure, data)]


def _confusion(domain: str, items: Mapping[str, np.ndarray], labels: list[str]) -> Drawn:
    count, predicted = len(labels), items["probabilities"].argmax(axis=1)
    table = np.bincount(items["labels"] * count + predicted, minlength=count**2).reshape(count, count)
    shown, names = _most_mistaken(table, [shorten(label, 14) for label in labels])
    figure = new_figure(2.2 + 0.55 * len(names), 1.7 + 0.5 * len(names))
    axes = figure.subplots()
    shares = shown / np.maximum(shown.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(shown):
        ink = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, str(value), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(f"{shorten(domain, 20)}: test examples")
    axes.grid(False)
    data = pd.DataFrame(table, columns=labels)
    data.insert(0, "true", labels)
    return f"confusion_{domain}", figure, data


def _most_mistaken(table: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[str]]:
    """The counts `[C, C]` and names of the classes to draw: where they are many, those with most mistakes, in their
    order, and all others as one."""
    count, most = len(names), DRAWN_CLASSES - 1
    if count <= DRAWN_CLASSES:
        return table, names
    mistakes = table.sum(axis=0) + table.sum(axis=1) - 2 * table.diagonal()
    chosen = np.sort(np.argsort(-mistakes, kind="stable")[:most])
    place = np.full(count, most)
    place[chosen] = np.arange(most)
    shown = np.zeros((DRAWN_CLASSES, DRAWN_CLASSES), table.dtype)
    np.add.at(shown, (place[:, None], place), table)
    return shown, [*(names[i] for i in chosen), f"{count - most} others"]


def _entities(domain: str, items: Mapping[str, np.ndarray], labels: list[str]) -> Drawn:
    kinds = sorted({label.partition("-")[2] for label in labels if label != "O"})
    true, predicted, correct = items["spans"].sum(axis=0).astype(float).T
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.nan_to_num(np.stack([correct / predicted, correct / true, 2 * correct / (true + predicted)]))
    data = pd.DataFrame({"entity": kinds, "precision": scores[0], "recall": scores[1], "f1": scores[2], "true": true})
    shown = data.loc[np.sort(np.argsort(-true, kind="stable")[:DRAWN_CLASSES])]  # the most frequent ones
    figure = new_figure(6.0, 1.3 + 0.42 * len(shown))
    axes = figure.subplots()
    for number, name in enumerate(("precision", "recall", "f1")):
        axes.barh(np.arange(len(shown)) + 0.26 * (number - 1), shown[name], 0.24, color=PALETTE[number], label=name)
    named = zip(shown["entity"], shown["true"], strict=True)
    axes.set_yticks(range(len(shown)), [f"{shorten(kind, 16)} ({count:.0f})" for kind, count in named])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("test score; in brackets: true entities")
    hidden = f" ({len(data) - len(shown)} more in the CSV)" if len(data) > len(shown) else ""
    axes.set_title(f"{shorten(domain, 20)}: entities{hidden}")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return f"entities_{domain}", figure, data


def calibration(items: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """By tenth of the highest probability: mean of it, share that was right, examples; `ece`, the same in all rows.

    ECE = sum_b n_b / n |right_b - said_b| (Guo et al. 2017, https://arxiv.org/abs/1706.04599).
    """
    said = items["probabilities"].max(axis=1).astype(float)
    right = items["probabilities"].argmax(axis=1) == items["labels"]
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    rows = [
        {"bin": b, "said": said[place == b].mean(), "right": right[place == b].mean(), "examples": (place == b).sum()}
        for b in range(BINS)
        if (place == b).any()
    ]
    data = pd.DataFrame(rows)
    gap = (data["examples"] * (data["said"] - data["right"]).abs()).sum() / data["examples"].sum()
    return data.assign(ece=float(gap) if math.isfinite(gap) else math.nan)


def _calibration(data: pd.DataFrame, order: list[str]) -> Drawn:
    """`order`: of the run's domains, which gives each its colour in all figures."""
    figure = new_figure(4.6, 3.8)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
    for domain, own in data.groupby("domain", sort=False):
        label, (colour, dash) = f"{shorten(domain, 18)}, ECE {own['ece'].iloc[0]:.3f}", line_style(order.index(domain))
        axes.plot(own["said"], own["right"], dash, color=colour, marker="o", label=label)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("probability of the prediction, mean of the bin")
    axes.set_ylabel("share that was right")
    axes.set_title("Calibration on test")
    axes.legend(frameon=False, fontsize=8)
    return "calibration", figure, data
