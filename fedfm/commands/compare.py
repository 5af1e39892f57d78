"""`fedfm compare`: the runs of a grid, their tables, figures and report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedfm.config.grid import Grid, grid_of, parse_grid
from fedfm.engines.cells import Cell, Source, check_jobs, plan, play_missing
from fedfm.engines.running import quiet_libraries
from fedfm.errors import DataError, RunError
from fedfm.results.comparison import (
    CellRun,
    cells_table,
    pairs_table,
    reach_table,
    summary_table,
    transfer_table,
    unequal_budgets,
)
from fedfm.results.comparison_figures import draw_comparison
from fedfm.results.comparison_report import caution, write_comparison_report
from fedfm.results.files import json_lines, replace_text
from fedfm.results.statistics import LEVEL
from fedfm.results.tables import main_table, write_table

CAPTIONS = {
    "pairs": "Differences between settings, paired by seed; 95 % intervals, uncorrected, by which better goes.",
    "transfer": "Differences to the bounds, by domain; all: Delta_m.",
}
Say = Callable[[str], None]
CAPTION = (
    "Test scores (primary metric), mean ± standard deviation over seeds; bold: highest; -: undefined. model: global, "
    "one for all sites of a domain, or personal, each test example scored by its own site's model."
)


@dataclass(frozen=True)
class Comparison:
    """A comparison that has ended. `failed`: cell -> why it has no scores."""

    folder: Path
    failed: Mapping[str, str]

    @property
    def cells(self) -> pd.DataFrame:
        """One row for each run, domain, metric and model."""
        return self._read("cells")

    @property
    def summary(self) -> pd.DataFrame:
        """Mean, sd and interval over seeds, by setting, model, domain and metric."""
        return self._read("summary")

    @property
    def pairs(self) -> pd.DataFrame:
        """Differences between settings, paired by seed, with interval and tests."""
        return self._read("pairs")

    @property
    def transfer(self) -> pd.DataFrame:
        """Differences to the bounds among the settings."""
        return self._read("transfer")

    @property
    def reach(self) -> pd.DataFrame:
        """Rounds, megabytes and seconds to the target."""
        return self._read("reach")

    def _read(self, name: str) -> pd.DataFrame:
        file = self.folder / f"{name}.csv"
        is_there = file.exists() and file.stat().st_size > 1
        return pd.read_csv(file, keep_default_na=False, na_values=[""]) if is_there else pd.DataFrame()


def compare(
    source: Source, grid: Mapping[str, object], jobs: int = 1, address: str = "", say: Say = lambda line: None
) -> Comparison:
    """Run every cell of a grid (key -> value or list of values) that has not been run, and compare them all.

    jobs: cells at once, each in a process of its own (Ray). address: of a Ray cluster that is there. `say` hears a line
    for each cell. Raises ConfigError where a cell cannot be, RunError where no cell ends, or where strategies with
    equal settings have not taken equal numbers of steps; the tables are then written all the same.
    """
    return compare_grid(source, grid_of(grid), jobs, address, say)


def compare_words(source: Source, words: Sequence[str], jobs: int, address: str, say: Say) -> Comparison:
    """As `compare`, of `key=a,b,c` words. jobs: 0 takes as many as the cores feed."""
    return compare_grid(source, parse_grid(words), jobs, address, say)


def compare_grid(source: Source, grid: Grid, jobs: int, address: str, say: Say) -> Comparison:
    """Plan, play, write."""
    quiet_libraries()
    root, cells = plan(source, grid)
    check_jobs(cells, jobs or 1)
    root.mkdir(parents=True, exist_ok=True)
    about = {"grid": grid, "cells": {cell.name: dict(cell.values) for cell in cells}}
    replace_text(root / "comparison.json", json_lines(about))
    failed = play_missing(cells, jobs, address, say)
    runs = _runs_of(cells)
    if not runs:
        raise RunError(f"no run of the comparison has ended: {next(iter(failed.values()), '')}", where=str(root))
    if not any(run.folder.info["final"] or run.folder.info.get("final_personal") for run in runs):
        what = "nothing to compare: no site of any run has test examples"
        raise DataError(what, where=str(root), mend="give at least one site a test split that is not empty")
    tables = tables_of(runs)
    unequal = unequal_budgets(tables["cells"])
    write(root, runs, tables, failed, unequal)
    for line in _outcome(tables):
        say(line)
    if unequal:
        what = f"unequal budgets of optimiser steps: {'; '.join(unequal[:3])}"
        raise RunError(what, where=str(root), mend="compare strategies with as many steps; the tables are written")
    return Comparison(root, failed)


def _runs_of(cells: Sequence[Cell]) -> list[CellRun]:
    found = []
    for cell in cells:
        if folder := cell.done:
            others = " ".join(
                f"{k}={v}" for k, v in cell.values.items() if k != "seed" and not k.startswith("strategy.")
            )
            config = cell.config
            found.append(CellRun(cell.name, cell.label, config.strategy.name, config.seed, folder, others))
    return found


def tables_of(runs: list[CellRun]) -> dict[str, pd.DataFrame]:
    """The tables of a comparison, by the name of their file."""
    cells = cells_table(runs)
    return {
        "cells": cells, "summary": summary_table(cells), "pairs": pairs_table(cells),
        "transfer": transfer_table(cells), "reach": reach_table(runs),
    }  # fmt: skip


def write(
    root: Path, runs: list[CellRun], tables: Mapping[str, pd.DataFrame], failed: Mapping[str, str], unequal: list[str]
) -> None:
    """Tables, figures and report into the folder of the comparison."""
    for name, table in tables.items():
        replace_text(root / f"{name}.csv", table.to_csv(index=False, lineterminator="\n") if len(table.columns) else "")
    table, strong = main_table(tables["summary"])
    write_table(root / "tables" / "main", table, CAPTION, strong)
    for name, caption in CAPTIONS.items():
        if len(tables[name]):
            write_table(root / "tables" / name, tables[name], caption)
    draw_comparison(root / "figures", runs, tables["cells"], tables["summary"], tables["transfer"])
    write_comparison_report(root, runs, tables, failed, unequal)


def _outcome(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """The main table for a terminal, and what can be said of it."""
    table, _ = main_table(tables["summary"])
    widths = [max(len(str(v)) for v in [name, *table[name]]) for name in table.columns]
    lines = ["", "  ".join(str(name).ljust(w) for name, w in zip(table.columns, widths, strict=True))]
    lines += [
        "  ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)) for row in table.itertuples(index=False)
    ]
    lines.append("")
    steps = tables["cells"].dropna(subset="steps").drop_duplicates("domain")
    lines.append("optimiser steps of a run: " + ", ".join(f"{r.domain} {r.steps:.0f}" for r in steps.itertuples()))
    return [*lines, *_verdicts(tables["pairs"]), ""]


def _verdicts(pairs: pd.DataFrame) -> list[str]:
    """The pairs of settings whose mean over domains differs, each with what its interval is worth among so many."""
    means = pairs[pairs["domain"] == "mean"] if len(pairs) else pairs
    if not len(means):
        return []
    found = means[means["better"] != ""]
    lines = [
        f"{row.left} - {row.right}, mean of domains: {row.difference:+.3f}, 95 % interval "
        f"[{row.low:+.3f}, {row.high:+.3f}], {row.seeds} paired seeds{caution(row.p_t_holm)}"
        for row in found.itertuples()
    ]
    kept = int((found["p_t_holm"] < 1 - LEVEL).sum())
    lines.append(
        f"means of domains that differ: {len(found)} of {len(means)} pairs by the interval, {kept} after Holm's "
        "correction"
    )
    return lines
