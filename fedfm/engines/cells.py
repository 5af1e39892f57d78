"""The cells of a comparison: each an ordinary run, started, gone on with or left as it is, one or several at once."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
import time
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedfm.config import RunConfig
from fedfm.config.grid import Grid, cells_of, label_of
from fedfm.config.models import RunsConfig
from fedfm.engines.running import anchored, load_config, resume, run
from fedfm.errors import ConfigError, DataError, EngineError, FedfmError, UserError
from fedfm.results.lines import in_time
from fedfm.results.run_folder import RunFolder
from fedfm.strategies import STRATEGIES

DONE = ("finished", "early-stopped")
Source = str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One combination of the grid. `home`: the folder that its run folder lies in."""

    name: str
    label: str
    values: Mapping[str, str]
    config: RunConfig
    home: Path

    @property
    def runs(self) -> list[RunFolder]:
        """What it has left so far, oldest first."""
        return [RunFolder.open(file.parent) for file in sorted(self.home.glob("*/run.json"))]

    @property
    def done(self) -> RunFolder | None:
        """Its finished run."""
        return next((folder for folder in self.runs if folder.info.get("status") in DONE), None)


@dataclass(frozen=True)
class Ended:
    """How a cell ended: `status` as in run.json, `reason` where it failed."""

    name: str
    status: str
    reason: str = ""


def plan(source: Source, grid: Grid) -> tuple[Path, list[Cell]]:
    """The folder of the comparison and its cells. Raises ConfigError with what is wrong with any cell.

    The folder is named by what is compared: the same command finds it again, another makes another. A key of
    [strategy] that only some of the grid's strategies have holds for these.
    """
    if several := [key for key, values in grid.items() if key.startswith("runs.") and len(values) > 1]:
        what = "several values of a key that changes no run make no cells of their own"
        raise UserError(what, where=several[0], mend="give one value")
    data = _read(source)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(source).stem) if isinstance(source, str | Path) else "config"
    names = grid.get("strategy.name", [])
    configs, problems = {}, {}
    for values in cells_of(grid):
        own, fitting = _fitting(data, values, names)
        try:
            config = anchored(load_config(own, *(f"{key}={value}" for key, value in fitting.items())))
        except ConfigError as error:
            problems |= dict.fromkeys(error.problems)
            continue
        configs.setdefault(config.model_copy(update={"runs": RunsConfig()}).sha256(), (fitting, config))
    if problems:
        raise ConfigError(list(problems))
    digest = hashlib.sha256("".join(sorted(configs)).encode()).hexdigest()[:8]
    root = Path(next(iter(configs.values()))[1].runs.folder).resolve() / f"compare-{stem}-{digest}"
    cells: dict[str, Cell] = {}
    for key, (values, config) in configs.items():
        label = label_of(values, grid)
        name = folder_name(f"{label} seed={config.seed}", others=cells, key=key)
        cells[name] = cell_at(root / "runs" / name, name, config, label, values)
    return root, list(cells.values())


def cell_at(home: Path, name: str, config: RunConfig, label: str = "", values: Mapping[str, str] | None = None) -> Cell:
    """A cell whose runs lie in `home`."""
    placed = config.model_copy(update={"runs": config.runs.model_copy(update={"folder": str(home)})})
    return Cell(name, label or name, values or {}, placed, home)


def folder_name(words: str, others: Collection[str], key: str) -> str:
    """Words as the name of a folder; where they are long, or come to one that is taken, with a part of `key`."""
    name = re.sub(r"[^A-Za-z0-9_.=-]+", "-", words).strip("-")
    return f"{name[:100]}-{key[:8]}" if len(name) > 100 or name in others else name


def _read(source: Source) -> dict[str, Any]:
    """The configuration as plain tables; what is wrong with a file is told with its lines."""
    if isinstance(source, Mapping):
        return dict(source)
    load_config(source)
    return tomllib.loads(Path(source).read_text(encoding="utf-8-sig"))


def _fitting(data: dict[str, Any], values: Mapping[str, str], names: Sequence[str]) -> tuple[dict, dict[str, str]]:
    """The configuration and the overrides without the keys of [strategy] that only the grid's other ones have."""
    name = values.get("strategy.name", "")
    if name not in STRATEGIES:
        return data, dict(values)
    mine = _keys(name)
    others = set().union(*(_keys(other) for other in names if other in STRATEGIES), _keys_of_file(data)) - mine
    section = {key: value for key, value in data.get("strategy", {}).items() if key not in others}
    foreign = {f"strategy.{key}" for key in others}
    fitting = {key: value for key, value in values.items() if key not in foreign}
    return {**data, "strategy": section}, fitting


def _keys(name: str) -> set[str]:
    return {field.name.replace("_", "-") for field in dataclasses.fields(STRATEGIES[name])} | {"name"}


def _keys_of_file(data: Mapping[str, Any]) -> set[str]:
    """Keys of the strategy that the file itself names."""
    name = data.get("strategy", {}).get("name", "")
    return _keys(name) if name in STRATEGIES else set()


def play(cell: Cell) -> Ended:
    """Run a cell, or go on with what is left of it; its errors are told, not raised.

    Figures and page of the single run are left to `fedfm report`: for many short cells they would cost a tenth.
    """
    if cell.done:
        return Ended(cell.name, "finished")
    try:
        left = [folder for folder in cell.runs if (folder.path / "checkpoint").is_dir()]
        done = resume(left[-1].path, report=False) if left else run(cell.config, report=False)
        return Ended(cell.name, str(done.info["status"]))
    except FedfmError as error:
        return Ended(cell.name, "failed", str(error))
    except Exception as error:
        return Ended(cell.name, "failed", f"{type(error).__name__}: {error}")


def play_missing(cells: Sequence[Cell], jobs: int, address: str, say: Callable[[str], None]) -> dict[str, str]:
    """Play every cell that is not done, a line for each; returns cell -> why it failed. Raises UserError.

    jobs: at once; 0 takes as many as the cores feed.
    """
    jobs = jobs or usual_jobs(cells)
    check_jobs(cells, jobs)
    left = [cell for cell in cells if not cell.done]
    settings = len({cell.label for cell in cells})
    grouped = f" ({settings} settings)" if settings < len(cells) else ""
    say(f"{len(cells)} runs{grouped}, {len(cells) - len(left)} already done, {jobs} at once")
    began, failed = time.monotonic(), {}
    for number, ended in enumerate(play_all(left, jobs, address) if left else (), 1):
        say(_line(ended, number, len(left), time.monotonic() - began))
        if ended.status == "failed":
            failed[ended.name] = ended.reason
    refuse_other_data(cells)
    return failed


def refuse_other_data(cells: Sequence[Cell]) -> None:
    """Cells that should have had the same data, played before and after these changed, cannot be compared.

    Raises DataError.
    """
    first: dict[tuple[str, ...], tuple[str, RunFolder]] = {}
    for cell in cells:
        done = cell.done
        for site, row in done.info["sites"].items() if done else ():
            settings = cell.config.domains[row["domain"]].model_dump_json()
            key = site, str(cell.config.seed), cell.config.data_root, settings
            digest, other = first.setdefault(key, (row["sha256"], done))
            if digest != row["sha256"]:
                what = f"its data changed between two runs that are to be compared, {other.path} and {done.path}"
                mend = "remove the folder of the run whose data are no more, and give the same command again"
                raise DataError(what, where=f"site {site}", mend=mend)


def _line(ended: Ended, number: int, count: int, seconds: float) -> str:
    reason = f": {ended.reason.splitlines()[0]}" if ended.reason else ""
    left = f"   {in_time(seconds / number * (count - number))} left" if number < count else ""
    return f"{number:>3}/{count} {ended.name}  {ended.status}{reason}{left}"


def play_all(cells: Sequence[Cell], jobs: int, address: str = "") -> Iterator[Ended]:
    """Every cell, in the order in which they end; `jobs` at once, each in a process of Ray, or one here."""
    if jobs == 1 and not address:
        yield from map(play, cells)
        return
    with _ray(jobs, address) as ray:
        threads = max((cell.config.engine.threads for cell in cells), default=1)
        task = ray.remote(num_cpus=threads, max_retries=0)(play)
        waiting = {task.remote(cell): cell for cell in cells}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            cell = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except Exception as error:  # its process died; the others go on
                yield Ended(cell.name, "failed", f"its process ended: {type(error).__name__}")


@contextmanager
def _ray(jobs: int, address: str) -> Iterator[Any]:
    """Ray for the time of a comparison: a cluster that is there, or one of this machine's own."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            ray.init(address=address, **quiet)
        else:
            ray.init(address="local", include_dashboard=False, num_cpus=jobs, **quiet)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise EngineError(f"Ray does not start: {error}", mend="--jobs 1 needs none") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def usual_jobs(cells: Sequence[Cell]) -> int:
    """As many at once as the cores that this process may use can feed; one where an engine has its own processes."""
    if any(cell.config.engine.name != "local" for cell in cells):
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max((cell.config.engine.threads for cell in cells), default=1)
    return max(1, min(len(cells), cores // threads))


def check_jobs(cells: Sequence[Cell], jobs: int) -> None:
    """Raises UserError where cells cannot run at once."""
    if jobs < 1:
        raise UserError(f"--jobs must be at least 0, which is as many as there are cores, got {jobs}")
    others = {cell.config.engine.name for cell in cells} - {"local"}
    if jobs > 1 and others:
        what = f"cells on the engine {', '.join(sorted(others))} have processes of their own"
        raise UserError(what, where="--jobs", mend='--jobs 1, or engine.name = "local"')
