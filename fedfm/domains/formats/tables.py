"""Texts with a label each: CSV, JSON lines and Parquet, one file or a folder of splits."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from fedfm.config import DomainConfig
from fedfm.domains.formats import arrow
from fedfm.domains.reading import RawSource, RawSplit, Reading, require_train, split_files
from fedfm.errors import did_you_mean

Records = Iterator[tuple[int, dict[str, Any]]]
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", *JSON_LINES, ".parquet")
LABEL_FILE = "labels.json"


def is_table_file(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def is_table_folder(path: Path) -> bool:
    return path.is_dir() and bool(split_files(path, SUFFIXES))


def read_table_file(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    split, order = _read(path, settings, reading)
    return RawSource({"train": split}, order, whole=True)


def read_table_folder(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    files = split_files(path, SUFFIXES)
    require_train(files, path)
    splits, order = {}, _declared_labels(path, reading)
    for split, file in files.items():
        splits[split], stored_order = _read(file, settings, reading)
        order = order or stored_order
    if order:
        _check_declared(splits, order, reading)
    return RawSource(splits, order)


def _read(path: Path, settings: DomainConfig, reading: Reading) -> tuple[RawSplit, tuple[str, ...] | None]:
    if path.suffix.lower() == ".parquet":
        return arrow.read_parquet(path, settings, reading)
    records = _json_records if path.suffix.lower() in JSON_LINES else _csv_records
    return _collect(records(path, settings, reading), path, settings, reading), None


def _collect(records: Records, path: Path, settings: DomainConfig, reading: Reading) -> RawSplit:
    texts, labels, lines = [], [], []
    for line, record in records:
        text, label = record[settings.text_column], record[settings.label_column]
        where = f"{path}, line {line}"
        if not isinstance(text, str):
            reading.problem(f"the text is {json.dumps(text)}, not a text", where, "write texts in quotes")
        elif label is None or isinstance(label, float | list | dict) or not str(label).strip():
            reading.problem(f"{json.dumps(label)} is no label", where, "labels are names or whole numbers")
        else:
            texts.append(text)
            labels.append(str(label).strip())
            lines.append(line)
    return RawSplit(texts, labels, lambda index, word=0: f"{path}, line {lines[index]}")


def _csv_records(path: Path, settings: DomainConfig, reading: Reading) -> Records:
    rows = csv.reader(io.StringIO(reading.text(path), newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            first_line, line = line, rows.line_num + 1  # a quoted text may run over several lines
            if header is None:
                header = [name.strip() for name in row]
                if not _has_columns(header, settings, f"{path}, line 1", reading):
                    return
            elif row and len(row) != len(header):
                what = f"{len(row)} cells, but the header has {len(header)}"
                reading.problem(what, f"{path}, line {first_line}", 'put texts with commas or quotes in quotes: "a, b"')
            elif row:
                yield first_line, dict(zip(header, row, strict=True))
    except csv.Error as error:
        reading.problem(f"broken CSV: {error}", f"{path}, line {line}", 'a quote inside a quoted text is doubled: ""')
    if header is None:
        reading.problem("the file is empty", str(path), "a CSV file starts with the names of its columns")


def _json_records(path: Path, settings: DomainConfig, reading: Reading) -> Records:
    mend = 'each line holds one object: {"text": "...", "label": "..."}'
    for number, line in enumerate(reading.text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            reading.problem(f"broken JSON: {error.msg} (column {error.colno})", where, mend)
            continue
        if not isinstance(record, dict):
            reading.problem("not a JSON object", where, mend)
        elif _has_columns(record, settings, where, reading):
            yield number, record


def _has_columns(found: Collection[str], settings: DomainConfig, where: str, reading: Reading) -> bool:
    text = reading.has_column(settings.text_column, "text-column", found, where)
    return reading.has_column(settings.label_column, "label-column", found, where) and text


def _declared_labels(folder: Path, reading: Reading) -> tuple[str, ...] | None:
    """The list in `labels.json`, which fixes the order of the labels; None without such a file."""
    path = folder / LABEL_FILE
    if not path.is_file():
        return None
    try:
        names = json.loads(reading.text(path))
    except json.JSONDecodeError as error:
        reading.problem(f"broken JSON: {error.msg}", f"{path}, line {error.lineno}", 'e.g. ["negative", "positive"]')
        return None
    if not isinstance(names, list) or len(set(map(str, names))) != len(names):
        reading.problem("not a list of different label names", str(path), 'e.g. ["negative", "positive"]')
        return None
    return tuple(map(str, names))


def _check_declared(splits: dict[str, RawSplit], order: tuple[str, ...], reading: Reading) -> None:
    known = set(order)
    for raw in splits.values():
        for index, label in enumerate(raw.labels):
            if label not in known:
                what = f'label "{label}" is not among the declared labels.{did_you_mean(label, order)}'
                reading.problem(what, raw.where(index), f"correct it, or add it to {LABEL_FILE}")
