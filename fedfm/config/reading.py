"""From a TOML file and `key=value` overrides to a valid configuration, or to all that is wrong with them."""

from __future__ import annotations

import datetime
import json
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedfm.config.explaining import explain
from fedfm.config.models import RunConfig, generated_domains
from fedfm.config.places import Keys, Places
from fedfm.errors import ConfigError, Problem

Check = Callable[[RunConfig], list[Problem]]
UNREADABLE = (ValueError, RecursionError)  # also a whole number of thousands of digits, brackets in thousands


def load_config(
    source: str | Path | Mapping[str, Any], overrides: Sequence[str] = (), checks: Sequence[Check] = ()
) -> RunConfig:
    """Read a TOML file (or a mapping), apply `key=value` overrides, validate.

    `checks` look at the configuration from higher rooms (is the strategy known, can the body be had?).
    Raises ConfigError with every problem found, each with its place and, where one is close, the right name.
    """
    text, label, data = _read(source)
    places = Places(label, text)
    problems = _apply(data, overrides, places) + _zero_bytes(data, places)
    config, found, wrong = _validate(data, places)
    problems += found
    unnamed = {path[:-1] for path in wrong if path[-1:] == ("name",)}  # of which strategy would its keys be?
    for problem in (problem for check in checks for problem in check(config)):
        path = tuple(problem.where.split("."))
        if path[:-1] not in unnamed:
            problems.append(Problem(problem.what, places.of(path), problem.mend))
    if problems:
        raise ConfigError(sorted(problems, key=by_line))
    return config


def by_line(problem: Problem) -> int:
    """For an order from top to bottom; what stands in no line, as on the command line, comes first."""
    line = re.search(r", line (\d+)", problem.where)
    return int(line[1]) if line else 0


def _read(source: str | Path | Mapping[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Text (empty for a mapping), label and content."""
    if isinstance(source, Mapping):
        return "", "configuration", json.loads(json.dumps(source))  # a deep copy in plain types
    text, data = read_toml(Path(source))
    return text, str(source), data


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Text and content of a TOML file. Raises ConfigError, with the line of what is no TOML."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(
            f"cannot read the configuration: {error.strerror}", where=str(path), mend=_instead_of(path)
        ) from None
    except UnicodeDecodeError as error:
        what, mend = f"not UTF-8 text (byte {error.start})", "save the file as UTF-8"
        raise ConfigError(what, where=str(path), mend=mend) from None
    try:
        return text, tomllib.loads(text + "\n")  # with which it knows the last line too
    except tomllib.TOMLDecodeError as error:
        line = re.search(r" \(at line (\d+), column \d+\)", str(error))
        where = f"{path}, line {line[1]}" if line else str(path)
        what = str(error).replace(line[0], "") if line else str(error)
        mend = 'texts need quotes, and so do patterns: name = "a", "*lora_B*" = "domain"'
        raise ConfigError(f"not valid TOML: {what}", where=where, mend=mend) from None
    except UNREADABLE as error:
        raise ConfigError(f"TOML that cannot be read: {error}", where=str(path), mend="shorten the value") from None


def _instead_of(path: Path) -> str:
    """What was perhaps meant by a path that is no file."""
    if (path / "config.toml").is_file():
        return f"the configuration of this run is {path / 'config.toml'}"
    if "=" in str(path):
        return f"the configuration file comes first: fedfm run CONFIG {path}"
    return "give the path of a TOML file"


# ---- overrides -------------------------------------------------------------------------------------------------------


def _apply(data: dict[str, Any], overrides: Sequence[str], places: Places) -> list[Problem]:
    """Put each override into `data`; what cannot be parsed comes back as problems."""
    problems = []
    for override in overrides:
        split = _split(override)
        if split is None:
            problems.append(_unreadable(override))
            continue
        path, value = split
        if path[0] == "domains" and len(path) > 1:  # an override changes the default domains, it does not replace them
            data.setdefault("domains", {name: {"task": d.task} for name, d in generated_domains().items()})
        _put(data, path, value, places)
    return problems


def _split(override: str) -> tuple[Keys, Any] | None:
    """Path and value of `key=value`; None where no part before a "=" is a key. A quoted key may hold "=" itself."""
    for sign in re.finditer("=", override):
        try:
            parsed: Any = tomllib.loads(f"{override[: sign.start()]} = 0")
        except UNREADABLE:
            continue
        path: Keys = ()
        while isinstance(parsed, dict) and len(parsed) == 1:
            (key, parsed) = next(iter(parsed.items()))
            path += (key,)
        if parsed == 0:
            return path, _value(override[sign.end() :].strip())
    return None


def _value(text: str) -> Any:
    """The TOML value that `text` is; what is none, a bare word or a path, is a text. No key takes a date."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except UNREADABLE:
        return float(text) if re.fullmatch(r"[+-]?(\.\d+|\d+\.)", text) else text
    value = parsed["value"]
    return text if len(parsed) > 1 or isinstance(value, datetime.date | datetime.time) else value


def _unreadable(override: str) -> Problem:
    if "=" not in override:
        return Problem(f'"{override}" is not of the form key=value', "command line", "e.g. rounds=3")
    mend = "put quotes around a part with other signs than letters, digits, - and _: 'sharing.\"*lora_B*\"=domain'"
    return Problem(f'cannot read the key of "{override}"', "command line", mend)


def _put(data: dict[str, Any], path: Keys, value: Any, places: Places) -> None:
    """Set `data[path] = value`; a table is merged into a table."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            _put(data, (*path, key), inner, places)
        return
    place = data
    for depth, key in enumerate(path[:-1], 1):
        if not isinstance(place.get(key), dict):
            place[key] = {}
            places.overridden(path[:depth])
        place = place[key]
    place[path[-1]] = value
    places.overridden(path)


def _zero_bytes(data: Any, places: Places, path: Keys = ()) -> list[Problem]:
    """A text with one is no path, no name and no column."""
    if isinstance(data, dict):
        return [problem for key, value in data.items() for problem in _zero_bytes(value, places, (*path, key))]
    if isinstance(data, list):
        return [problem for place, value in enumerate(data) for problem in _zero_bytes(value, places, (*path, place))]
    is_one = isinstance(data, str) and "\0" in data
    return [Problem("the text holds a zero byte", places.of(path), "take it out")] if is_one else []


# ---- validation ------------------------------------------------------------------------------------------------------


def _validate(data: dict[str, Any], places: Places) -> tuple[RunConfig, list[Problem], set[Keys]]:
    """A valid configuration, what had to be taken out of `data` to get there, and from which keys.

    A wrong key is left at its default, so that the looks over several keys, and the checks of higher rooms, still find
    what else is wrong.
    """
    problems: list[Problem] = []
    wrong: set[Keys] = set()
    while True:
        try:
            return RunConfig.model_validate(data), problems, wrong
        except ValidationError as error:
            for item in error.errors():
                problems.append(explain(item, places))
                path = tuple(part for part in item["loc"] if part != "[key]")
                while not _take_out(data, path) and path:
                    path = path[:-1]  # it was not given, and is wrong beside what was: that goes too
                wrong.add(path)


def _take_out(data: dict[str, Any], path: Keys) -> bool:
    """Delete the key at `path`, or the first list on the way; give a domain a task, for which there is no default.

    Returns whether there was anything to delete.
    """
    place, found = data, False
    for depth, key in enumerate(path):
        if not isinstance(place.get(key), dict) or depth == len(path) - 1:
            found = key in place
            place.pop(key, None)
            break
        place = place[key]
    if len(path) == 3 and path[0] == "domains" and path[2] == "task":
        place["task"], found = "text-classification", True
    if not data.get("domains"):
        data.pop("domains", None)  # the default, where the only domain had to go
    return found
