"""Texts with a label each: CSV, JSON lines and Parquet, one file or a folder of splits."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedfm.config import DomainConfig
from fedfm.domains.formats import arrow
from fedfm.domains.reading import RawSource, RawSplit, Reading, mend_of_texts, require_train, split_files
from fedfm.errors import did_you_mean

Records = Iterator[tuple[int, dict[str, Any]]]
Columns = Mapping[str, str]  # key of the configuration -> the column that it names
JSON_LINES = (".jsonl", ".ndjson")
SUFFIXES = (".csv", *JSON_LINES, ".parquet")
LABEL_FILE = "labels.json"
LONGEST_CELL = 2**31 - 1  # Python's csv stops at 131,072 characters, which a court's judgment is beyond
PARTED_BY = {";": "semicolons", "\t": "tabs", "|": "upright strokes"}
# Excel's "CSV (comma delimited)" is no advice: where decimals have a comma it writes semicolons under that name
MEND_OF_SIGNS = 'save it with commas between the cells: LibreOffice (field delimiter ",") and to_csv of pandas can'


def is_table_file(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in SUFFIXES


def is_table_folder(path: Path) -> bool:
    return path.is_dir() and bool(split_files(SUFFIXES, Reading(path)))


def read_table_file(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    split, order = _read(path, settings, reading)
    return RawSource({"train": split}, order, whole=True)


def read_table_folder(path: Path, settings: DomainConfig, reading: Reading) -> RawSource:
    files = split_files(SUFFIXES, reading)
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
    columns = {"text-column": settings.text_column, "label-column": settings.label_column}
    return _collect(_records(path, columns, reading), path, settings, reading), None


def read_texts(path: Path, settings: DomainConfig, reading: Reading) -> list[str]:
    """The texts of a table, which needs no labels; what is no text becomes a problem."""
    if path.suffix.lower() == ".parquet":
        return arrow.read_texts(path, settings, reading)
    texts = []
    for line, record in _records(path, {"text-column": settings.text_column}, reading):
        text, where = record[settings.text_column], f"{path}, line {line}"
        if _is_text(text, where, reading):
            texts.append(text)
    return texts


def _records(path: Path, columns: Columns, reading: Reading) -> Records:
    read = _json_records if path.suffix.lower() in JSON_LINES else _csv_records
    return read(path, columns, reading)


def _is_text(text: Any, where: str, reading: Reading) -> bool:
    if not isinstance(text, str):
        reading.problem(f"the text is {json.dumps(text)}, not a text", where, "write texts in quotes")
        return False
    return reading.is_whole(text, where)


def _collect(records: Records, path: Path, settings: DomainConfig, reading: Reading) -> RawSplit:
    texts, labels, lines = [], [], []
    for line, record in records:
        text, label = record[settings.text_column], record[settings.label_column]
        where = f"{path}, line {line}"
        if not _is_text(text, where, reading):
            continue
        if label is None or isinstance(label, float | list | dict) or not str(label).strip():
            reading.problem(f"{json.dumps(label)} is no label", where, "labels are names or whole numbers")
        elif reading.is_whole(str(label), where):
            texts.append(text)
            labels.append(str(label).strip())
            lines.append(line)
    return RawSplit(texts, labels, lambda index, word=0: f"{path}, line {lines[index]}")


def _csv_records(path: Path, columns: Columns, reading: Reading) -> Records:
    csv.field_size_limit(LONGEST_CELL)
    content = reading.text(path)
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for row in rows:
            first_line, line = line, rows.line_num + 1  # a quoted text may run over several lines
            if header is None:
                if not row:
                    reading.problem("the first line is empty", f"{path}, line 1", "it must name the columns")
                    return
                header = [name.strip() for name in row]
                if not _fits(header, columns, f"{path}, line 1", reading):
                    return
            elif row and len(row) != len(header):
                what = f"{len(row)} cells, but the header has {len(header)}"
                reading.problem(what, f"{path}, line {first_line}", 'put texts with commas or quotes in quotes: "a, b"')
            elif row:
                yield first_line, dict(zip(header, row, strict=True))
    except csv.Error as error:
        first = content.partition("\n")[0]
        if header is None and (sign := next((sign for sign in PARTED_BY if f'"{sign}"' in first), "")):
            _tell_sign(sign, f"{path}, line 1", reading)  # quoted cells with other signs between are broken, too
        else:
            mend = 'a quote inside a quoted text is doubled: ""'
            reading.problem(f"broken CSV: {error}", f"{path}, line {line}", mend)
    else:
        if header is None:
            reading.problem("the file is empty", str(path), "a CSV file starts with the names of its columns")


def _json_records(path: Path, columns: Columns, reading: Reading) -> Records:
    mend = 'each line holds one object: {"text": "...", "label": "..."}'
    without = "" if "label-column" in columns else mend_of_texts(columns["text-column"])
    for number, line in enumerate(reading.text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            reading.problem(f"broken JSON: {error.msg} (column {error.colno})", where, mend)
            continue
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, lists in lists in lists
            reading.problem(f"JSON that cannot be read: {error}", where, mend)
            continue
        if not isinstance(record, dict):
            reading.problem("not a JSON object", where, mend)
        elif _has_columns(record, columns, where, reading, without):
            yield number, record


def _fits(header: list[str], columns: Columns, where: str, reading: Reading) -> bool:
    """Has a CSV's header the columns, and each of them once?"""
    if not _is_parted_by_commas(header, columns, where, reading):
        return False
    # who gives texts alone cannot set columns any more, and may not know that the first line is none of the texts
    text = columns["text-column"]
    unlabelled = f'the first line must name the columns, one of them "{text}"; or give the texts as .txt, one a line'
    mend = "" if "label-column" in columns else unlabelled
    twice = [name for name in columns.values() if header.count(name) > 1]
    for name in twice:
        reading.problem(f'{header.count(name)} columns are named "{name}"', where, "give each column a name of its own")
    return not twice and _has_columns(header, columns, where, reading, mend)


def _is_parted_by_commas(header: Sequence[str], columns: Columns, where: str, reading: Reading) -> bool:
    """If another sign parts the cells of a header, that becomes a problem.

    Texts hold such signs, too: a single cell that has one is a header if a column's name is in it, or if it would have
    to be two columns.
    """
    found = [sign for sign in PARTED_BY if len(header) == 1 and sign in header[0]]
    cells = {sign: {cell.strip().lower() for cell in header[0].split(sign)} for sign in found}
    wanted = {name.lower() for name in columns.values()}
    likely = [sign for sign in found if len(columns) > 1 or not cells[sign].isdisjoint(wanted)]
    if likely:
        _tell_sign(likely[0], where, reading)
    return not likely


def _tell_sign(sign: str, where: str, reading: Reading) -> None:
    what = f"the cells are parted by {PARTED_BY[sign]}, and a CSV file's are by commas"
    reading.problem(what, where, MEND_OF_SIGNS)


def _has_columns(found: Collection[str], columns: Columns, where: str, reading: Reading, mend: str = "") -> bool:
    there = [reading.has_column(column, key, found, where, mend) for key, column in columns.items()]
    return all(there)  # after a look for each of them: both may be missing


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
    except (ValueError, RecursionError) as error:
        reading.problem(f"JSON that cannot be read: {error}", str(path), 'e.g. ["negative", "positive"]')
        return None
    if not isinstance(names, list) or len(set(map(str, names))) != len(names):
        reading.problem("not a list of different label names", str(path), 'e.g. ["negative", "positive"]')
        return None
    if not all(reading.is_whole(str(name), str(path)) for name in names):
        return None
    return tuple(map(str, names))


def _check_declared(splits: dict[str, RawSplit], order: tuple[str, ...], reading: Reading) -> None:
    known = set(order)
    for raw in splits.values():
        for index, label in enumerate(raw.labels):
            if label not in known:
                what = f'label "{label}" is not among the declared labels.{did_you_mean(label, order)}'
                reading.problem(what, raw.where(index), f"correct it, or add it to {LABEL_FILE}")
