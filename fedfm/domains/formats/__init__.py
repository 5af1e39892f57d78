"""Readers of real data: a path and a task to a checked Dataset.

| task                 | formats                                                                                     |
|----------------------|---------------------------------------------------------------------------------------------|
| image-classification | MedMNIST-layout .npz; train/<label>/*.png or <label>/*.jpg folders                          |
| text-classification  | .csv, .jsonl, .parquet with a text and a label column; a folder train.csv, val.csv, test.csv |
| token-classification | .conll, .txt, .bio, .iob columns; a folder train.conll, dev.conll, test.conll               |
| each of them         | a folder written by `datasets` (save_to_disk); a hub id owner/name                          |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fedfm.config import DomainConfig, Task
from fedfm.domains.assemble import assemble
from fedfm.domains.examples import Dataset
from fedfm.domains.formats import conll, hub, images, saved, tables
from fedfm.domains.reading import RawSource, Reading
from fedfm.errors import DataError

__all__ = ["FORMATS", "Format", "guess_task", "read_source", "recognise"]


@dataclass(frozen=True)
class Format:
    """A way to store a task's data: `fits` looks at a path, `read` reads what fits."""

    name: str
    fits: Callable[[Path], bool]
    read: Callable[[Path, DomainConfig, Reading], RawSource]


_SAVED = Format("saved dataset", saved.is_saved_dataset, saved.read_saved_dataset)
FORMATS: dict[Task, tuple[Format, ...]] = {  # the first that fits is read
    "image-classification": (
        _SAVED,
        Format("MedMNIST .npz", images.is_npz, images.read_npz),
        Format("image folder", images.is_image_folder, images.read_image_folder),
    ),
    "text-classification": (
        _SAVED,
        Format("table file", tables.is_table_file, tables.read_table_file),
        Format("folder of tables", tables.is_table_folder, tables.read_table_folder),
    ),
    "token-classification": (
        _SAVED,
        Format("CoNLL file", conll.is_conll_file, conll.read_conll_file),
        Format("folder of CoNLL files", conll.is_conll_folder, conll.read_conll_folder),
    ),
}
_ACCEPTED: dict[Task, str] = {
    "image-classification": "an .npz file of the MedMNIST layout, or a folder train/<label>/*.png",
    "text-classification": "a .csv, .jsonl or .parquet file, or a folder with train.csv, val.csv, test.csv",
    "token-classification": "a .conll, .txt, .bio or .iob file, or a folder with train.conll, dev.conll, test.conll",
}


def read_source(path: Path, settings: DomainConfig, seed: int, part: bool = False) -> Dataset:
    """Read and check what lies at `path` for the task of `settings`.

    `part`: it is one site's of a domain that has more, where the other sites may bring what it lacks.

    Splits that the source lacks are cut off from its training data, stratified, 70 : 10 : 20, by `seed`. DataError
    lists the problems found with file and line or index (the first ten, and how many more).
    """
    reading, sha256 = Reading(path), None
    try:
        if not path.exists() and hub.is_hub_id(str(path)):
            raw, sha256 = hub.read_hub(str(path), settings, reading)
        else:
            raw = recognise(path, settings.task).read(path, settings, reading)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise DataError(what, where=str(error.filename or path), mend="check that you may read it") from None
    reading.refuse()
    return assemble(raw, settings.task, reading, seed, part, sha256)


def recognise(path: Path, task: Task) -> Format:
    """The format of `task` that fits; DataError when nothing is there, or nothing fits."""
    if not path.exists():
        mend = "correct the path; relative sources are looked up under data-root"
        raise DataError("no such file or folder", where=str(path), mend=mend)
    for candidate in FORMATS[task]:
        if candidate.fits(path):
            return candidate
    raise DataError(f"nothing here that can be read for {task}", where=str(path), mend=f"give {_ACCEPTED[task]}")


def guess_task(path: Path) -> Task:
    """The task whose formats fit what lies at `path`. DataError when none does, or more than one."""
    if path.exists() and saved.is_saved_dataset(path):
        return saved.guess_task(path)
    fitting = [task for task, formats in FORMATS.items() if path.exists() and any(each.fits(path) for each in formats)]
    if len(fitting) == 1:
        return fitting[0]
    if not path.exists():
        raise DataError("no such file or folder", where=str(path), mend="correct the path")
    if fitting:
        what = f"it could be read for {' and for '.join(fitting)}"
        raise DataError(what, where=str(path), mend=f"say which: --task {fitting[0]}")
    mend = "; ".join(f"for {task}: {accepted}" for task, accepted in _ACCEPTED.items())
    raise DataError("no format that fedfm reads", where=str(path), mend=mend)
