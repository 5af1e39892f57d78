"""What pydantic finds, in plain words: what is wrong, where, and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedfm.config.models import DomainConfig, LocalConfig, LocalOverrides, RunConfig
from fedfm.config.places import Keys, Places, dotted
from fedfm.errors import Problem, did_you_mean

SENTENCES = {
    "bool_type": "must be true or false",
    "dict_type": "must be a table",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "greater_than": "must be greater than {gt:g}",
    "greater_than_equal": "must be at least {ge:g}",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt:g}",
    "less_than_equal": "must be at most {le:g}",
    "model_type": "must be a table",
    "string_type": "must be a text, in quotes",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
}
GIVEN_CHARACTERS = 60


def explain(error: Mapping[str, Any], places: Places, root: type[BaseModel] = RunConfig) -> Problem:
    """One entry of `ValidationError.errors()` as a Problem; `root`: the model of the whole file."""
    path: Keys = tuple(part for part in error["loc"] if part != "[key]")
    where, kind = places.of(path), error["type"]
    if kind == "finding":
        return Problem(error["ctx"]["what"], where)
    if kind == "extra_forbidden":
        return _unknown_key(path, error["input"], where, root)
    field = _field(path, root)
    default = _default(field)
    if kind == "missing":
        values = " | ".join(map(_given, get_args(field.annotation) if field else ())) or "..."
        meant = f": {field.description}" if field and field.description else ""
        return Problem(f'"{path[-1]}" is missing', where, f"add {path[-1]} = {values}{meant}")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        what = f"{_given(error['input'])} is not known here.{did_you_mean(str(error['input']), allowed)}"
        return Problem(what, where, f"known: {', '.join(allowed)}")
    if kind == "string_pattern_mismatch" and field is not None:
        return Problem(f"must be {field.description}, got {_given(error['input'])}", where)
    if kind == "model_type":
        default = f"its keys: {', '.join(_aliases(_model(path, root)))}"
    sentence = SENTENCES.get(kind, error["msg"][0].lower() + error["msg"][1:]).format(**error.get("ctx", {}))
    return Problem(f"{sentence}, got {_given(error['input'])}", where, default)


def _given(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= GIVEN_CHARACTERS else f"{text[:GIVEN_CHARACTERS]} ..."


def _default(field: FieldInfo | None) -> str:
    """How to mend a wrong value: the default, and what the key means where that is written down."""
    if field is None or field.is_required() or isinstance(field.default, BaseModel) or field.default_factory:
        return ""
    default = f"the default is {dotted((str(field.alias),))} = {_given(field.default)}"
    return f"{default}; {field.description}" if field.description else default


def _unknown_key(path: Keys, given: Any, where: str, root: type[BaseModel]) -> Problem:
    model, name = _model(path[:-1], root), str(path[-1])
    known = _aliases(model)
    elsewhere = [f"{table}.{name}".lstrip(".") for table, keys in _tables(root) if name.replace("_", "-") in keys]
    guess = did_you_mean(name, known)
    if elsewhere and not (guess and name.replace("_", "-") in known):
        guess = f' did you mean "{elsewhere[0].replace("_", "-")}"?'
    what = "unknown table." if isinstance(given, Mapping) else "unknown key."
    return Problem(f"{what}{guess}", where, f"known: {', '.join(known)}")


def _tables(root: type[BaseModel]) -> Iterator[tuple[str, Sequence[str]]]:
    """Every table of the file with its keys; the most common places first."""
    yield "", _aliases(root)
    for field in root.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield str(field.alias), _aliases(field.annotation)
    if root is RunConfig:
        yield "domains.NAME", _aliases(DomainConfig)


def _aliases(model: type[BaseModel]) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


def _model(path: Keys, root: type[BaseModel]) -> type[BaseModel]:
    """The model of the table at `path`; of the nearest around it where the path leads out of all models."""
    model, is_name = root, False  # is_name: the next part names a table in a table of tables, and is no key
    for part in path:
        if isinstance(part, int) or is_name:
            is_name = False
            continue
        field = next((f for f in model.model_fields.values() if f.alias == part), None)
        inner = _inner(field.annotation) if field else None
        if inner is None:
            return model
        model, is_name = inner, get_origin(field.annotation) is dict
    return model


def _inner(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model`, `dict[str, Model]` or `tuple[Model, ...]`."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _field(path: Keys, root: type[BaseModel]) -> FieldInfo | None:
    """What is known of the key at `path`; an element of a list stands for the list."""
    while path and isinstance(path[-1], int):
        path = path[:-1]
    model = _model(path[:-1], root)
    model = LocalConfig if model is LocalOverrides else model  # which has the defaults
    return next((f for f in model.model_fields.values() if path and f.alias == path[-1]), None)
