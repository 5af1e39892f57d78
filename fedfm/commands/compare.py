"""`fedfm compare`: the runs of a grid, their tables, figures and report."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from fedfm.config.grid import Grid, grid_of, parse_grid
from fedfm.engines.cells import Cell, Ended, Source, check_jobs, plan, play_all, usual_jobs
from fedfm.engines.running import quiet_libraries
from fedfm.errors import RunError
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
from fedfm.results.files import json_lines, replace_text
from fedfm.results.lines import in_time
from fedfm.results.tables import main_table, write_table

Say = Callable[[str], None]
CAPTION = (
    "Test scores (primary metric), mean ± standard deviation over seeds; bold: highest. model: global, one for all "
    "sites of a domain, or personal, each test example scored by its own site's model."
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
    jobs = jobs or usual_jobs(cells)
    check_jobs(cells, jobs)
    root.mkdir(parents=True, exist_ok=True)
    about = {"grid": grid, "cells": {cell.name: dict(cell.values) for cell in cells}}
    replace_text(root / "comparison.json", json_lines(about))
    left = [cell for cell in cells if not cell.done]
    settings = len({cell.label for cell in cells})
    say(f"{len(cells)} runs ({settings} settings), {len(cells) - len(left)} already done, {jobs} at once")
    failed = _play(left, jobs, address, say)
    runs = _runs_of(cells)
    if not runs:
        raise RunError(f"no run of the comparison has ended: {next(iter(failed.values()), '')}", where=str(root))
    unequal = write(root, runs, failed)
    for line in _outcome(root):
        say(line)
    if unequal:
        what = f"unequal budgets of optimiser steps: {'; '.join(unequal[:3])}"
        raise RunError(what, where=str(root), mend="compare strategies with as many steps; the tables are written")
    return Comparison(root, failed)


def _play(cells: Sequence[Cell], jobs: int, address: str, say: Say) -> dict[str, str]:
    """Run what is left; returns cell -> why it failed."""
    began, failed = time.monotonic(), {}
    for number, ended in enumerate(play_all(cells, jobs, address) if cells else (), 1):
        took = time.monotonic() - began
        left = in_time(took / number * (len(cells) - number)) if number < len(cells) else ""
        say(_line(ended, number, len(cells), left))
        if ended.status == "failed":
            failed[ended.name] = ended.reason
    return failed


def _line(ended: Ended, number: int, count: int, left: str) -> str:
    reason = f": {ended.reason.splitlines()[0]}" if ended.reason else ""
    return f"{number:>3}/{count} {ended.name}  {ended.status}{reason}" + (f"   {left} left" if left else "")


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


def write(root: Path, runs: list[CellRun], failed: Mapping[str, str]) -> list[str]:
    """Tables, figures and report of the runs; returns in which they had unequal budgets."""
    from fedfm.results.comparison_report import write_comparison_report

    cells = cells_table(runs)
    summary, pairs, transfer = summary_table(cells), pairs_table(cells), transfer_table(cells)
    named = {"cells": cells, "summary": summary, "pairs": pairs, "transfer": transfer, "reach": reach_table(runs)}
    for name, table in named.items():
        replace_text(root / f"{name}.csv", table.to_csv(index=False, lineterminator="\n") if len(table.columns) else "")
    table, strong = main_table(summary)
    write_table(root / "tables" / "main", table, CAPTION, strong)
    if len(pairs):
        write_table(root / "tables" / "pairs", pairs, "Differences between settings, paired by seed; 95 % intervals.")
    if len(transfer):
        write_table(root / "tables" / "transfer", transfer, "Differences to the bounds, by domain; all: Delta_m.")
    draw_comparison(root / "figures", runs, cells, summary, transfer)
    unequal = unequal_budgets(cells)
    write_comparison_report(root, runs, named, failed, unequal)
    return unequal


def _outcome(root: Path) -> list[str]:
    """The main table for a terminal, and what can be said of it."""
    done = Comparison(root, {})
    table, _ = main_table(done.summary)
    widths = [max(len(str(v)) for v in [name, *table[name]]) for name in table.columns]
    lines = ["", "  ".join(str(name).ljust(w) for name, w in zip(table.columns, widths, strict=True))]
    lines += [
        "  ".join(str(v).ljust(w) for v, w in zip(row, widths, strict=True)) for row in table.itertuples(index=False)
    ]
    lines.append("")
    steps = done.cells[done.cells["steps"].notna()].drop_duplicates("domain")
    lines.append("optimiser steps of a run: " + ", ".join(f"{r.domain} {r.steps:.0f}" for r in steps.itertuples()))
    pairs = done.pairs
    for row in pairs[pairs["domain"] == "mean"].itertuples() if len(pairs) else ():
        if isinstance(row.better, str) and row.better and not math.isnan(row.low):
            lines.append(
                f"{row.left} - {row.right}, mean of domains: {row.difference:+.3f}, 95 % interval "
                f"[{row.low:+.3f}, {row.high:+.3f}], {row.seeds} paired seeds"
            )
    return [*lines, ""]
