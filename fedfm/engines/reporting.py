"""What a run leaves for people when it has ended, however it has ended: figures, intervals, and its page."""

from __future__ import annotations

from pathlib import Path

from fedfm.profiling import phase
from fedfm.results.figures import draw_figures
from fedfm.results.predictions import load_items
from fedfm.results.run_figures import draw_run_figures, labels_of
from fedfm.results.run_folder import RunFolder
from fedfm.results.run_report import write_run_report


@phase("write")
def leave_report(folder: RunFolder) -> Path:
    """Draw what there are numbers for, write `intervals.csv` and `report.html`; returns the page's path."""
    if len(folder.metrics):
        draw_figures(folder)
        draw_run_figures(folder)
    folder.write_intervals(intervals_of(folder))
    return write_run_report(folder)


def leave_report_of_failure(folder: RunFolder) -> None:
    """As `leave_report`; what is wrong with the page of a failed run must not hide why the run failed."""
    try:
        leave_report(folder)
    except Exception as error:
        folder.event("warning", message=f"no report.html: {type(error).__name__}: {error}")


def intervals_of(folder: RunFolder) -> list[dict]:
    """A row a domain: its primary metric on test and the 95 % bootstrap interval, of the models that are shown."""
    info = folder.info
    if not labels_of(folder) or not info.get("final"):
        return []
    from fedfm.training.bootstrap import bootstrap_interval

    config, model = folder.config, "personal" if info.get("final_personal") else "global"
    scores, rows = info.get("final_personal") or info["final"], []
    for domain, labels in labels_of(folder).items():
        items, metric = load_items(folder.path, model, domain), info["primary"][domain]
        if items:
            low, high = bootstrap_interval(config.domains[domain].task, items, labels, metric, config.seed)
            score = scores[domain][metric]
            rows.append({"domain": domain, "model": model, "metric": metric, "score": score, "low": low, "high": high})
    return rows
