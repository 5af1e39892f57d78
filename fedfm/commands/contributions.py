"""`fedfm contributions`: what each site brings, by training without it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd

from fedfm.engines.cells import Cell, Source, cell_at, folder_name, play_missing
from fedfm.engines.running import anchored, load_config, quiet_libraries
from fedfm.errors import RunError, UserError
from fedfm.results.contributions import (
    MOST_SITES,
    Coalition,
    coalitions,
    contributions_folder,
    left_out_values,
    shapley_values,
)
from fedfm.results.files import replace_text
from fedfm.results.run_figures import draw_contributions
from fedfm.results.run_folder import RunFolder
from fedfm.results.run_report import write_run_report


def contributions(
    source: Source, *overrides: str, shapley: bool = False, metric: str = "mean", jobs: int = 1,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Path, pd.DataFrame]:  # fmt: skip
    """Train every coalition that is needed and has not been, and value the sites by validation score at the end.

    metric: "mean", "worst", or a domain, whose primary metric counts. The folder holds the runs, `coalitions.csv` and
    `contributions.csv` (site, domain, left_out or shapley). Raises UserError, RunError where a run fails.
    """
    quiet_libraries()
    config = anchored(load_config(source, *overrides))
    sites = config.sites()
    if shapley and len(sites) > MOST_SITES:
        needed = 2 ** len(sites) - 1
        what = f"exact Shapley values of {len(sites)} sites need {needed} runs; the most is {MOST_SITES} sites"
        raise UserError(what, where="--shapley", mend="leave --shapley out: one run for each site left out")
    if len(sites) < 2:
        raise UserError("one site alone has nobody to be compared with", where="domains")
    if metric not in ("mean", "worst", *config.domains):
        raise UserError(
            f'unknown metric "{metric}"', where="--metric", mend=f"mean, worst, {', '.join(config.domains)}"
        )
    root = contributions_folder(Path(config.runs.folder).resolve(), config.sha256())
    cells = {group: _cell(source, overrides, group, sites, root) for group in coalitions(sites, shapley)}
    for name, reason in play_missing(list(cells.values()), jobs, "", say).items():
        raise RunError(f"{name}: {reason}", mend="the same command runs what is missing")
    runs = {group: cell.done for group, cell in cells.items()}
    values = {group: _value(run, metric) for group, run in runs.items()}
    values[frozenset()] = _value(runs[frozenset(sites)], metric, at_the_start=True)
    found, column = (shapley_values(values), "shapley") if shapley else (left_out_values(values), "left_out")
    rows = [{"sites": " ".join(sorted(group)), "value": value} for group, value in values.items()]
    table = pd.DataFrame([{"site": site, "domain": sites[site], column: value} for site, value in found.items()])
    replace_text(root / "coalitions.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
    draw_contributions(root / "contributions", table, metric)
    for run in _runs_of(root.parent, config.sha256()):
        write_run_report(run)
    return root, table


def _runs_of(folder: Path, config_sha256: str) -> list[RunFolder]:
    """Runs of this configuration that have a page, which the contributions belong on."""
    pages = [RunFolder.open(page.parent) for page in sorted(folder.glob("*/report.html")) if _is_run(page.parent)]
    return [run for run in pages if run.info.get("config_sha256") == config_sha256]


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _cell(source: Source, overrides: Sequence[str], group: Coalition, sites: dict[str, str], root: Path) -> Cell:
    without = sorted(sites.keys() - group)
    config = anchored(load_config(source, *overrides, f"sampling.without={json.dumps(without)}"))
    name = folder_name(f"without {' '.join(without)}" if without else "all", others=(), key=config.sha256())
    return cell_at(root / "runs" / name, name, config)


def _value(run: RunFolder, metric: str, at_the_start: bool = False) -> float:
    """The validation score of the models that sites use, of the final weights or before the first round."""
    info, rows = run.info, run.metrics
    model = "personal" if info.get("final_personal") else "global"
    wanted = rows["round"].min() if at_the_start else info["final_round"]
    rows = rows[(rows["split"] == "validation") & (rows["model"] == model) & (rows["round"] == wanted)]
    if metric in ("mean", "worst"):
        own = rows[(rows["scope"] == "federation") & (rows["metric"] == metric)]
    else:
        primary = info["primary"][metric]
        own = rows[(rows["scope"] == "domain") & (rows["domain"] == metric) & (rows["metric"] == primary)]
    return float(own["value"].item())
