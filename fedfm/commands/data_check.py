"""`fedfm data check`: what a run would find in a source, as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfm.config import DomainConfig, Task
from fedfm.domains import check_path
from fedfm.domains.formats import guess_task
from fedfm.errors import DataError, UserError, did_you_mean


def report(path: Path, task: str, settings: dict[str, Any], part: bool, console: Console) -> None:
    """Print format, counts, warnings; raise DataError with the problems when the source cannot be used.

    `part`: the source is one site's of a domain that has more.
    """
    tasks = get_args(Task)
    if task and task not in tasks:
        raise UserError(f'unknown task "{task}".{did_you_mean(task, tasks)}', mend=f"--task {' | '.join(tasks)}")
    task = task or guess_task(path)
    found = check_path(path, DomainConfig.model_validate({"task": task, **settings}), part=part)
    if found.problems:
        raise DataError(found.problems)
    console.print(Text(f"{path}: {found.format}, {found.task}", "bold"), soft_wrap=True)
    table = Table(*found.header, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found.rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    for warning in found.warnings:
        console.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)
    console.print(Text(f"sha256 {found.sha256}"), soft_wrap=True)
    count = len(found.warnings)
    console.print(f"usable{f', {count} warning' if count else ''}{'s' if count > 1 else ''}")
