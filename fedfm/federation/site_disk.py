"""What a real site keeps on its own disk, under `state` of its site.toml, besides the tensors of `site_store`.

    releases.json            how many updates have ever left, counted before each leaves
    runs/<run>/data.json     digest of the data that the site had at the run's first order
    runs/<run>/checkpoint/   private tensors between rounds; .unused: of an update that the coordinator did not use
    runs/<run>/cache/        what frozen layers make of the data, until the test is scored or another run comes

A run is known by the name of the coordinator's run folder, which is checked here: nothing else of what a coordinator
names becomes a path.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedfm.domains.loading import look
from fedfm.errors import DataError, PolicyError

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def run_folder(state: Path, coordinators_folder: str) -> Path:
    """This site's folder for a run, made if it is new. Raises PolicyError for what is no name of a run."""
    name = coordinators_folder.replace("\\", "/").rstrip("/").rpartition("/")[2]
    if not RUN_NAME.fullmatch(name):
        raise PolicyError(f'the order names no run ("{name[:100]}")', mend="letters, digits, ., - and _ make a name")
    folder = state / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def drop_cache(folder: Path) -> None:
    """Remove what a run made of the data; it can be made again. A site plays one message at a time."""
    shutil.rmtree(folder / "cache", ignore_errors=True)


def drop_other_caches(folder: Path) -> None:
    """Those of all runs of this site but one: of a run that was killed no order ever says that it is over."""
    for other in folder.parent.iterdir():
        if other != folder:
            drop_cache(other)


class Releases:
    """How many updates have ever left a site, in a file that survives kills. Safe for several processes."""

    def __init__(self, state: Path):
        self.file = state / "releases.json"

    def count(self) -> int:
        """Raises PolicyError when the file is damaged: then nobody knows, and nothing leaves."""
        if not self.file.exists():
            return 0
        try:
            count = json.loads(self.file.read_text(encoding="utf-8"))["releases"]
            if type(count) is int and count >= 0:
                return count
        except (ValueError, KeyError, TypeError):
            pass
        mend = "write the number of updates that have left into it, as the audit tells it, or remove it"
        raise PolicyError("the counter of updates is damaged", where=self.file.name, mend=mend)

    @contextmanager
    def one_more(self) -> Iterator[int]:
        """Hold the counter: the block is given the count so far, and when it ends without an error one is added.

        The number is on the disk before the block is left. Who is killed after that and before the update has gone has
        counted one too many, never one too few.
        """
        with _locked(self.file.with_suffix(".lock")):
            count = self.count()
            yield count
            write_json(self.file, {"releases": count + 1})


def check_same_data(folder: Path, source: str, digest: Callable[[], str]) -> None:
    """The data must be those of the run's first order. Raises DataError when they are others.

    `folder`: of the run. `digest` reads the data and is asked only where a file's size or time of change is another
    than when it was last asked: a large source is not read again for every message.
    """
    file, seen = folder / "data.json", look(source)
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if known and known["look"] == seen:
        return
    sha256 = digest()
    if known and known["sha256"] != sha256:
        what = f"its data have changed since the run began: sha256 {sha256[:12]}..., was {known['sha256'][:12]}..."
        raise DataError(what, mend="bring the old data back at the site, or start a new run")
    write_json(file, {"sha256": sha256, "look": seen})


def write_json(file: Path, value: dict[str, Any]) -> None:
    """Whole or not at all, and on the disk when this returns."""
    fresh = file.with_suffix(".tmp")
    with fresh.open("w", encoding="utf-8") as stream:
        json.dump(value, stream)
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)
    folder = os.open(file.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name too
    finally:
        os.close(folder)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    import fcntl  # of real sites only: Windows, which has none, can simulate

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
