"""Arrow tables, as in Parquet files and in what `datasets` stores: columns of any task to raw splits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from fedfm.config import DomainConfig, Task
from fedfm.domains.formats import images
from fedfm.domains.formats.tags import rewrite
from fedfm.domains.reading import RawSource, RawSplit, Reading, mend_of_texts
from fedfm.errors import DataError

LabelOrder = tuple[str, ...] | None
Features = Mapping[str, Any]  # column -> its type, as `datasets` writes it: {"_type": "ClassLabel", "names": [...]}


def read_parquet(path: Path, settings: DomainConfig, reading: Reading) -> tuple[RawSplit, LabelOrder]:
    """Texts and labels of a Parquet file, with the order of the labels where the file stores one."""
    table = _read_table(path, reading)
    return split_from_table(table, _features(table), settings, str(path), reading)


def read_texts(path: Path, settings: DomainConfig, reading: Reading) -> list[str]:
    """The texts of a Parquet file, which needs no labels; what is no text becomes a problem."""
    table, texts = _read_table(path, reading), []
    column = settings.text_column
    if not reading.has_column(column, "text-column", table.column_names, str(path), mend_of_texts(column)):
        return []
    for row, value in enumerate(_values(table, column, str(path))):
        try:
            texts.append(_text(value))
        except ValueError as error:
            reading.problem(str(error), f"{path}, index {row}")
    return texts


def _read_table(path: Path, reading: Reading) -> pa.Table:
    reading.digest(path)
    try:
        return pa.parquet.read_table(path)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        what, mend = f"not a Parquet file that can be read: {reason}", "write or copy it again"
        raise DataError(what, where=str(path), mend=mend) from None


def _values(table: pa.Table, column: str, name: str) -> list:
    try:
        return table[column].to_pylist()
    except UnicodeDecodeError as error:
        what = f'column "{column}" holds a text that is not UTF-8 ({error.reason})'
        raise DataError(what, where=name, mend="write the file again with its texts as UTF-8") from None


def task_of_features(features: Features) -> Task:
    """The task that the columns speak for."""
    if any(map(_is_picture, features.values())):
        return "image-classification"
    return "token-classification" if "tokens" in features else "text-classification"


def source_from_tables(
    tables: Mapping[str, tuple[pa.Table, Features, str]], settings: DomainConfig, reading: Reading, whole: bool
) -> RawSource:
    """`tables`: split -> (table, features as `datasets` describes them, name for messages)."""
    if "train" not in tables:
        raise DataError("no train split here", where=str(reading.root), mend="the dataset needs a split named train")
    splits, order = {}, None
    for split, (table, stored, name) in tables.items():
        features = stored or _features(table)
        splits[split], split_order = split_from_table(table, features, settings, name, reading)
        order = order or split_order
    if settings.task == "token-classification":
        return RawSource(rewrite(splits, settings.strict_tags, reading), whole=whole)
    if settings.task == "image-classification":
        splits = images.unify(splits, settings.image_size, reading)
    return RawSource(splits, order, whole)


def split_from_table(
    table: pa.Table, features: Features, settings: DomainConfig, name: str, reading: Reading
) -> tuple[RawSplit, LabelOrder]:
    """The two columns of a task as a raw split; numbers of a ClassLabel become names."""
    inputs_column, labels_column = _columns_of(table, features, settings)
    found = table.column_names
    has_inputs = reading.has_column(inputs_column, "text-column", found, name)
    if not reading.has_column(labels_column, "label-column", found, name) or not has_inputs:
        return RawSplit([], [], _places(name, [])), None
    names = _class_names(features.get(labels_column))
    read_input, read_label = _CELLS[settings.task]
    inputs, labels, rows = [], [], []
    columns = zip(_values(table, inputs_column, name), _values(table, labels_column, name), strict=True)
    for row, (value, label) in enumerate(columns):
        try:
            pair = read_input(value), read_label(label, names)
            if settings.task == "token-classification" and len(pair[0]) != len(pair[1]):
                raise ValueError(f"{len(pair[0])} tokens and {len(pair[1])} tags")
        except ValueError as error:
            reading.problem(str(error), f"{name}, index {row}")
            continue
        inputs.append(pair[0])
        labels.append(pair[1])
        rows.append(row)
    return RawSplit(inputs, labels, _places(name, rows)), names


def _columns_of(table: pa.Table, features: Features, settings: DomainConfig) -> tuple[str, str]:
    """Column names: the configured ones, or those that are usual for the task where the defaults are not there."""
    inputs, labels = settings.text_column, settings.label_column
    if settings.task == "token-classification":
        inputs = "tokens" if inputs == "text" else inputs
        labels = "ner_tags" if labels == "label" and "label" not in table.column_names else labels
    if settings.task == "image-classification":
        pictures = [name for name, feature in features.items() if _is_picture(feature)]
        inputs = next(iter(pictures), "image") if inputs == "text" else inputs
    return inputs, labels


def _is_picture(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"the text is {value!r}, not a text")
    return value


def _tokens(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(token, str) and token for token in value):
        raise ValueError("the tokens are not a list of words")
    return tuple(value)


def _image(value: Any):
    if not isinstance(value, dict) or not value.get("bytes"):
        raise ValueError("the row holds no image, only a path or nothing: save the dataset with its images embedded")
    return images.decode(value["bytes"])


def _label(value: Any, names: LabelOrder) -> str:
    if names is not None and isinstance(value, int):
        if not 0 <= value < len(names):
            raise ValueError(f"label {value} is out of range: the dataset names {len(names)} labels")
        return names[value]
    if value is None or isinstance(value, float | list | dict) or not str(value).strip():
        raise ValueError(f"{value!r} is no label: labels are names or whole numbers")
    return str(value).strip()


def _tags(value: Any, names: LabelOrder) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError("the tags are not a list")
    if names is None and any(isinstance(tag, int) for tag in value):
        raise ValueError("the tags are numbers, and the dataset does not name them (a ClassLabel feature does)")
    return tuple(_label(tag, names) for tag in value)


_CELLS: dict[Task, tuple[Callable, Callable]] = {
    "image-classification": (_image, _label),
    "text-classification": (_text, _label),
    "token-classification": (_tokens, _tags),
}


def _places(name: str, rows: Sequence[int]) -> Callable[..., str]:
    return lambda index, word=None: f"{name}, index {rows[index]}" + (f", word {word}" if word is not None else "")


def _class_names(feature: Any) -> LabelOrder:
    """Names of a ClassLabel, bare or inside a list or Sequence feature."""
    if isinstance(feature, list) and feature:
        return _class_names(feature[0])
    if not isinstance(feature, dict):
        return None
    if feature.get("_type") == "ClassLabel":
        return tuple(feature["names"])
    return _class_names(feature.get("feature"))


def _features(table: pa.Table) -> Features:
    """What `datasets` wrote about the columns into the table's schema; empty when it did not."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    return json.loads(stored).get("info", {}).get("features") or {} if stored else {}
