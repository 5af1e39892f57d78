"""What pydantic finds, in plain words: what is wrong, where, and what would be right."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fedfm.config.models import DomainConfig, LocalConfig, LocalOverrides, RunConfig, SiteConfig
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
    "tuple_type": "must be a list",
}
GIVEN_CHARACTERS = 60


def explain(error: Mapping[str, Any], places: Places) -> Problem:
    """One entry of `ValidationError.errors()` as a Problem."""
    path: Keys = tuple(part for part in error["loc"] if part != "[key]")
    where, kind = places.of(path), error["type"]
    if kind == "finding":
        return Problem(error["ctx"]["what"], where)
    if kind == "extra_forbidden":
        return _unknown_key(path, error["input"], where)
    field = _field(path)
    default = _default(path, field)
    if kind == "missing":
        values = " | ".join(map(_given, get_args(field.annotation) if field else ())) or "..."
        return Problem(f'"{path[-1]}" is missing', where, f"add {path[-1]} = {values}")
    if kind == "literal_error":
        allowed = re.findall(r"'([^']+)'", error["ctx"]["expected"])
        what = f"{_given(error['input'])} is not known here.{did_you_mean(str(error['input']), allowed)}"
        return Problem(what, where, f"known: {', '.join(allowed)}")
    if kind == "string_pattern_mismatch" and field is not None:
        return Problem(f"must be {field.description}, got {_given(error['input'])}", where)
    sentence = SENTENCES.get(kind, error["msg"][0].lower() + error["msg"][1:]).format(**error.get("ctx", {}))
    return Problem(f"{sentence}, got {_given(error['input'])}", where, default)


def _given(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= GIVEN_CHARACTERS else f"{text[:GIVEN_CHARACTERS]} ..."


def _default(path: Keys, field: FieldInfo | None) -> str:
    """How to mend a wrong value: the default, and what the key means where that is written down."""
    if field is None or field.is_required() or isinstance(field.default, BaseModel) or field.default_factory:
        return ""
    default = f"the default is {dotted(path[-1:])} = {_given(field.default)}"
    return f"{default}; {field.description}" if field.description else default


def _unknown_key(path: Keys, given: Any, where: str) -> Problem:
    model, name = _model(path[:-1]), str(path[-1])
    known = _aliases(model)
    elsewhere = [f"{table}.{name}".lstrip(".") for table, keys in _tables() if name.replace("_", "-") in keys]
    guess = did_you_mean(name, known)
    if elsewhere and not (guess and name.replace("_", "-") in known):
        guess = f' did you mean "{elsewhere[0].replace("_", "-")}"?'
    what = "unknown table." if isinstance(given, Mapping) else "unknown key."
    return Problem(f"{what}{guess}", where, f"known: {', '.join(known)}")


def _tables() -> Iterator[tuple[str, Sequence[str]]]:
    """Every table of the configuration with its keys; the most common places first."""
    yield "", _aliases(RunConfig)
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield name, _aliases(field.annotation)
    yield "domains.NAME", _aliases(DomainConfig)


def _aliases(model: type[BaseModel]) -> list[str]:
    return [str(field.alias) for field in model.model_fields.values()]


def _model(path: Keys) -> type[BaseModel]:
    """The model of the table at `path`."""
    match [part for part in path if isinstance(part, str)]:
        case []:
            return RunConfig
        case ["domains", _]:
            return DomainConfig
        case ["domains", _, "local"]:
            return LocalOverrides
        case ["domains", _, "site"]:
            return SiteConfig
        case [name, *_]:
            field = next((f for f in RunConfig.model_fields.values() if f.alias == name), None)
            inner = field.annotation if field else None
            return inner if isinstance(inner, type) and issubclass(inner, BaseModel) else RunConfig
    raise AssertionError(path)


def _field(path: Keys) -> FieldInfo | None:
    """What is known of the key at `path`; an element of a list stands for the list."""
    names = [part for part in path if isinstance(part, str)]
    model = _model(tuple(names[:-1]))
    model = LocalConfig if model is LocalOverrides else model  # which has the defaults
    return next((f for f in model.model_fields.values() if names and f.alias == names[-1]), None)
