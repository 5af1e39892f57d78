"""Folders that `datasets` wrote with `save_to_disk`, read without that package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedfm.config import DomainConfig, Task
from fedfm.domains.formats.arrow import Features, source_from_tables, task_of_features
from fedfm.domains.reading import RawSource, Reading, split_of, splits_among
from fedfm.errors import DataError

MEND = "save the dataset again with save_to_disk"


def is_saved_dataset(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def guess_task(path: Path) -> Task:
    """The task of a saved dataset, from its columns."""
    splits = _split_folders(path, Reading(path))
    return task_of_features(_stored_features(next(iter(splits.values()), path)))


def read_saved_dataset(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    """A `DatasetDict` folder (a split each), or a single `Dataset` folder."""
    tables = {}
    for split, folder in _split_folders(path, reading).items():
        tables[split] = (_read_arrow_files(folder, reading), _stored_features(folder), str(folder))
    return source_from_tables(tables, settings, reading, whole=not (path / "dataset_dict.json").is_file())


def _stored_features(folder: Path) -> Features:
    path = folder / "dataset_info.json"
    features = _entry(path, "features") if path.is_file() else None
    if not isinstance(features or {}, dict):
        raise DataError('"features" is not a table of columns', where=str(path), mend=MEND)
    return features or {}


def _split_folders(path: Path, reading: Reading) -> dict[str, Path]:
    if not (path / "dataset_dict.json").is_file():
        return {"train": path}
    file = path / "dataset_dict.json"
    names = _entry(file, "splits")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError('"splits" is not a list of names', where=str(file), mend=MEND)
    found = splits_among(names, reading)
    reading.warnings += [f'the split "{name}" is not used' for name in names if split_of(name) is None]
    return {split: path / name for split, name in found.items()}


def _read_arrow_files(folder: Path, reading: Reading) -> pa.Table:
    files = [folder / entry["filename"] for entry in _entry(folder / "state.json", "_data_files")]
    for file in (folder / "dataset_info.json", *files):  # not the state: its fingerprint says how, not what, was saved
        if file.is_file():
            reading.digest(file)
    try:
        return pa.concat_tables([_read_arrow(file) for file in files])
    except (pa.ArrowException, OSError) as error:
        what = f"an Arrow file is missing or damaged: {_first_line(error)}"
        raise DataError(what, where=str(folder), mend=MEND) from None


def _read_arrow(file: Path) -> pa.Table:
    with pa.memory_map(str(file)) as source:
        try:
            return pa.ipc.open_stream(source).read_all()
        except pa.ArrowInvalid:  # the random-access variant of the format
            source.seek(0)
            return pa.ipc.open_file(source).read_all()


def _entry(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = f"cannot be read ({type(error).__name__}: {_first_line(error)})"
        raise DataError(what, where=str(path), mend=MEND) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
