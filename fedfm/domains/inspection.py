"""What `fedfm data check PATH` tells: format, counts, problems and warnings of a source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fedfm.config import DomainConfig, Task
from fedfm.domains.examples import Dataset
from fedfm.domains.formats import guess_task, read_source, recognise
from fedfm.domains.loading import label_counts
from fedfm.errors import DataError, Problem


@dataclass(frozen=True)
class CheckReport:
    """The findings on one source. `rows` (under `header`) count each label in each split; a last row is the total.

    With `problems` the source cannot be used, and `rows` and `sha256` are empty. `task` and `format` are "" where even
    they could not be told.
    """

    path: Path
    task: Task | str
    format: str
    sha256: str
    header: list[str]
    rows: list[list[str]]
    problems: tuple[Problem, ...]
    warnings: tuple[str, ...]

    @property
    def usable(self) -> bool:
        return not self.problems


def check_path(
    path: Path,
    settings: DomainConfig | None = None,
    seed: int = 0,
    part: bool = False,
    columns: Mapping[str, str] | None = None,
) -> CheckReport:
    """Read a source as a run would and report; never raises DataError. Without `settings` the task is guessed.

    `part`: as for `read_source`. `columns`: text-column and label-column, beside a guessed task.
    """
    task, name = (settings.task if settings else ""), ""
    try:
        settings = settings or DomainConfig.model_validate({"task": guess_task(path), **(columns or {})})
        task = settings.task
        name = recognise(path, task).name
        dataset = read_source(path, settings, seed, part)
    except DataError as error:
        return CheckReport(path, task, name, "", [], [], error.problems, ())
    header, rows = count_table(dataset)
    return CheckReport(path, task, name, dataset.sha256, header, rows, (), dataset.warnings)


def count_table(dataset: Dataset) -> tuple[list[str], list[list[str]]]:
    """Header and rows, ready to print: labels down, splits across."""
    counts = label_counts(dataset)
    total = "sentences" if dataset.task == "token-classification" else "examples"
    names = [name for name in counts["train"] if name != "sentences" or total == "examples"]
    rows = [[name, *(str(counts[split][name]) for split in counts)] for name in names]
    rows.append([total, *(str(len(examples)) for examples in dataset.splits().values())])
    return ["entity type" if total == "sentences" else "label", *counts], rows
