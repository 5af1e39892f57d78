"""The folder of a run: the only place where a run's files are named, written and read.

    run.json      what ran, on what, how it ended         replaced as a whole, atomically
    config.toml   runs again as this run
    rounds.csv    one row a round                         rows are appended, each write ends with a line end
    metrics.csv   one row a score
    sent.csv      one row for each site in each message that came from it: what left, its size, its digest
    audit.jsonl   in the place of sent.csv where sites are across machines: see `audit.py`
    intervals.csv one row a domain: its score on test and the bootstrap interval, written with the report
    predictions/  of a simulation: the test, example by example
    events.jsonl  one JSON object a line: what the screen shows

A process can be killed at any moment: a last line without its line end is torn, is not read, and is cut off before
the next line is written. One process writes; any number may read meanwhile.
"""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from fedfm.config import RunConfig, load_config
from fedfm.errors import FedfmError, UserError
from fedfm.profiling import phase
from fedfm.results.environment import environment
from fedfm.results.files import append_lines, json_lines, plain, replace_text, whole_lines

ROUND_COLUMNS = (
    "round", "seconds", "bytes_down", "bytes_up", "sites_asked", "sites_used", "sites_dropped", "loss",
    "virtual_seconds", "aggregation_error",
)  # fmt: skip
Listen = Callable[[dict[str, Any]], None]  # who hears the events of a run while it goes
SENT_COLUMNS = ("round", "site", "domain", "what", "together", "tensors", "bytes", "sha256")
INTERVAL_COLUMNS = ("domain", "model", "metric", "score", "low", "high")
METRIC_COLUMNS = ("round", "scope", "name", "domain", "split", "metric", "value", "num_examples", "model")
WORDS = frozenset(
    {"scope", "name", "domain", "split", "metric", "model", "site", "what", "sha256"}
)  # all other columns hold numbers
STATUSES = ("running", "finished", "early-stopped", "failed", "interrupted")


@dataclass(frozen=True)
class RunFolder:
    """One run's folder; holds no state of its own, so that two objects on one path agree."""

    path: Path

    @classmethod
    @phase("write")
    def create(cls, config: RunConfig, root: Path | None = None) -> RunFolder:
        """A new folder `<root>/<YYYYmmdd-HHMMSS>-<strategy>-<id>` (local time) with config.toml and run.json.

        `root` is the folder that holds runs; by default the configuration's `runs.folder`. Raises UserError where it
        cannot be written.
        """
        root = Path(config.runs.folder) if root is None else Path(root)
        try:
            path = _new_folder(root, config.strategy.name)
        except OSError as error:
            mend = "give a folder that you may write to: runs.folder=..."
            raise UserError(f"cannot make a run folder: {error.strerror}", where=str(root), mend=mend) from None
        folder = cls(path)
        replace_text(path / "config.toml", config.to_toml())
        folder.update(
            name=path.name,
            status="running",
            strategy=config.strategy.name,
            seed=config.seed,
            config_sha256=config.sha256(),
            started=_now(),
            **environment(),
        )
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run folder. Raises UserError when `path` is none, or its run.json is damaged."""
        path = Path(path)
        if not (path / "run.json").is_file():
            what = "not a run folder (it has no run.json)" if path.is_dir() else "there is no such folder"
            raise UserError(what, where=str(path), mend=_nearest_run(path))
        _read_json(path / "run.json")
        return cls(path)

    @property
    def info(self) -> dict[str, Any]:
        """run.json as it is on disk now; values that were not finite are None."""
        return _read_json(self.path / "run.json")

    @property
    def config(self) -> RunConfig:
        return load_config(self.path / "config.toml")

    @property
    def rounds(self) -> pd.DataFrame:
        """rounds.csv [rounds, ROUND_COLUMNS]: seconds; bytes over all sites; numbers of sites; mean training loss."""
        return _read_table(self.path / "rounds.csv", ROUND_COLUMNS)

    @property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv [scores, METRIC_COLUMNS]; rows of scope "federation" have an empty domain."""
        return _read_table(self.path / "metrics.csv", METRIC_COLUMNS)

    def update(self, **fields: Any) -> None:
        """Merge `fields` into run.json, atomically. An unknown status raises ValueError."""
        if fields.get("status", "running") not in STATUSES:
            raise ValueError(f'status "{fields["status"]}" is none of {", ".join(STATUSES)}')
        info = self.info if (self.path / "run.json").exists() else {}
        replace_text(self.path / "run.json", json_lines(info | plain(fields)))

    def add_round(self, row: Mapping[str, Any]) -> None:
        """Append one row to rounds.csv. Columns left out stay empty; an unknown one raises ValueError."""
        _append_rows(self.path / "rounds.csv", ROUND_COLUMNS, [row])

    def add_metrics(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to metrics.csv, all in one write. Columns as for `add_round`."""
        _append_rows(self.path / "metrics.csv", METRIC_COLUMNS, list(rows))

    @property
    def sent(self) -> pd.DataFrame:
        """sent.csv [messages, SENT_COLUMNS]: what left each site; `together` sites share a message of `bytes`."""
        return _read_table(self.path / "sent.csv", SENT_COLUMNS)

    def add_sent(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Append rows to sent.csv, all in one write."""
        _append_rows(self.path / "sent.csv", SENT_COLUMNS, list(rows))

    @property
    def intervals(self) -> pd.DataFrame:
        """intervals.csv [domains, INTERVAL_COLUMNS]: 95 % bootstrap intervals over test items."""
        return _read_table(self.path / "intervals.csv", INTERVAL_COLUMNS)

    def write_intervals(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Replace intervals.csv."""
        cells = [[_cell(row[name]) for name in INTERVAL_COLUMNS] for row in rows]
        replace_text(self.path / "intervals.csv", _csv_text([INTERVAL_COLUMNS, *cells]))

    def event(self, kind: str, /, **fields: Any) -> dict[str, Any]:
        """Append one line to events.jsonl and return it as a reader of the file will see it (NaN becomes None)."""
        return self.events(kind, [fields])[0]

    def events(self, kind: str, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """As `event` for each of `rows`, in one write: a round may have a thousand of a kind."""
        now = _now()
        events = [plain({"time": now, "event": kind, **fields}) for fields in rows]
        text = "".join(_as_line(event) + "\n" for event in events)
        append_lines(self.path / "events.jsonl", text)
        return events

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder for one writing process; the system lets go of it when the process ends, however it ends.

        Raises UserError when another process holds it. Without `fcntl` (Windows) nothing is locked.
        """
        with open(self.path / "config.toml", encoding="utf-8") as file:  # it is there from the first moment on
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError:
                    mend = "wait until it has ended, or end it, and resume then"
                    raise UserError("another process is writing to this run", where=str(self.path), mend=mend) from None
            yield

    def fail(self, error: BaseException) -> None:
        """Write that the run failed, why, and by which error of fedfm (another program's counts as RunError)."""
        known = isinstance(error, FedfmError)
        reason = str(error) if known else f"{type(error).__name__}: {error}"
        self.update(status="failed", reason=reason, error=type(error).__name__ if known else "RunError")
        self.event("run-failed", reason=reason)

    def truncate_after(self, round: int, is_unscored: bool = False) -> None:
        """Make the tables those of a run that has just done `round`, to resume from there.

        Rows of later rounds go, and so do all test scores: a run that goes on has not come to its test. `is_unscored`:
        the validation of that round is still to come, and so goes what an earlier try has written of it.
        """

        def keep(row: Mapping[str, str]) -> bool:
            split = row.get("split", row.get("what", "")).removeprefix("tally of ")
            number, again = int(row["round"]), is_unscored and split == "validation"
            return split != "test" and (number < round if again else number <= round)

        for name, columns in (("rounds", ROUND_COLUMNS), ("sent", SENT_COLUMNS), ("metrics", METRIC_COLUMNS)):
            _keep_rows(self.path / f"{name}.csv", columns, keep)


_as_line = json.JSONEncoder(allow_nan=False).encode  # json.dumps would make an encoder for every event


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _new_folder(root: Path, strategy: str) -> Path:
    stem = f"{datetime.now():%Y%m%d-%H%M%S}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', strategy)}"
    root.mkdir(parents=True, exist_ok=True)
    while True:
        path = root / f"{stem}-{secrets.token_hex(3)}"
        try:
            path.mkdir()
            return path
        except FileExistsError:  # another run of this second drew the same id
            continue


def _nearest_run(path: Path) -> str:
    """How to mend a path that is no run folder: the newest run close to it, if there is one."""
    near = path if path.is_dir() else path.parent
    runs = sorted(found.parent for found in near.glob("*/run.json"))
    return f"the newest run there is {runs[-1]}" if runs else "give a folder that `fedfm run` has written"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        mend = "restore the file from a copy; the scores are still in metrics.csv"
        raise UserError(f"damaged: {error}", where=str(path), mend=mend) from None


def _append_rows(path: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    if unknown := sorted(set().union(*rows).difference(columns)):
        raise ValueError(f"{path.name} has no column {', '.join(unknown)}; its columns are {', '.join(columns)}")
    if any("round" not in row for row in rows):
        raise ValueError(f"a row of {path.name} names no round")
    cells = [[_cell(row.get(name)) for name in columns] for row in rows]
    append_lines(path, _csv_text(cells), header=_csv_text([columns]))


def _cell(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _csv_text(rows: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _keep_rows(path: Path, columns: Sequence[str], keep: Callable[[Mapping[str, str]], bool]) -> None:
    if not path.exists():
        return
    rows = csv.DictReader(io.StringIO(whole_lines(path)))
    kept = [[row[name] for name in columns] for row in rows if keep(row)]
    replace_text(path, _csv_text([columns, *kept]))


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Texts and numbers exactly as written: no text is taken for a missing value (a domain may be called "NA")."""
    _, *rows = csv.reader(io.StringIO(whole_lines(path) or "\n"))
    cells = dict(zip(columns, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(columns, ())
    return pd.DataFrame({name: list(cells[name]) if name in WORDS else _numbers(cells[name]) for name in columns})


def _numbers(cells: Sequence[str]) -> pd.Series:
    try:
        return pd.Series([int(cell) for cell in cells], dtype="int64")
    except ValueError:
        return pd.Series([float(cell or "nan") for cell in cells], dtype="float64")
