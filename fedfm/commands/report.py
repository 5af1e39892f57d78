"""`fedfm report`: the page of a run, whether it has finished, failed, or was stopped."""

from __future__ import annotations

from pathlib import Path

from fedfm.results.figures import draw_figures
from fedfm.results.predictions import load_items
from fedfm.results.run_figures import draw_run_figures, labels_of
from fedfm.results.run_folder import RunFolder
from fedfm.results.run_report import write_run_report


def report(path: str | Path) -> Path:
    """Draw the figures and write `<run>/report.html`; returns its path. Raises UserError where `path` is no run."""
    folder = RunFolder.open(path)
    if len(folder.metrics):
        draw_figures(folder)
        draw_run_figures(folder)
    return write_run_report(folder, intervals_of(folder))


def intervals_of(folder: RunFolder) -> dict[str, tuple[float, float]]:
    """Domain -> 95 % bootstrap interval of its primary metric over test items, of the models that are shown."""
    from fedfm.training.bootstrap import bootstrap_interval

    info, config = folder.info, folder.config
    model = "personal" if info.get("final_personal") else "global"
    found = {}
    for domain, labels in labels_of(folder).items():
        items = load_items(folder.path, model, domain)
        if items:
            task = config.domains[domain].task
            found[domain] = bootstrap_interval(task, items, labels, info["primary"][domain], config.seed)
    return found
