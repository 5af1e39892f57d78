"""`fedfm report`: the page of a run, whether it has finished, failed, or was stopped."""

from __future__ import annotations

from pathlib import Path

from fedfm.engines.reporting import leave_report
from fedfm.results.run_folder import RunFolder


def report(path: str | Path) -> Path:
    """Draw the figures and write `<run>/report.html` anew; returns its path. Raises UserError if `path` is no run."""
    return leave_report(RunFolder.open(path))
