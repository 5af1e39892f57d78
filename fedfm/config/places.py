"""Where a key of the configuration stands: a line of the file, or the command line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Keys = tuple[str | int, ...]


class Places:
    """Keys of a key -> the place that an error names. `label` is the file, `text` what it holds."""

    def __init__(self, label: str, text: str = ""):
        self.label = label
        self.known: dict[Keys, str] = {path: f"{label}, line {line}" for path, line in key_lines(text).items()}

    def overridden(self, path: Keys) -> None:
        """From now on `path`, with all below it, comes from the command line."""
        self.known = {known: place for known, place in self.known.items() if known[: len(path)] != path}
        self.known[path] = "command line"

    def of(self, path: Keys) -> str:
        """The place of `path`, or of the nearest table around it that stands somewhere."""
        for end in range(len(path), 0, -1):
            inside = (known for known in self.known if known[:end] == path[:end] and len(known) > end)
            nearest = path[:end] if path[:end] in self.known else next(inside, None)
            if nearest:
                return f"{self.known[nearest]}, {dotted(path)}"
        return f"{self.label}, {dotted(path)}" if path else self.label


def dotted(path: Sequence[str | int]) -> str:
    """The key as TOML writes it: `sharing."*lora_B*"`. Tables of an array count from 1: `domains.a.site[2].name`."""
    words = []
    for part in path:
        if isinstance(part, int):
            words[-1] += f"[{part + 1}]"
        else:
            words.append(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else f'"{part}"')
    return ".".join(words)


def key_lines(text: str) -> dict[Keys, int]:
    """The first line (from 1) of every key and table in a valid TOML text.

    tomllib tells no lines. A statement is the fewest lines that parse on their own, so tomllib itself resolves quotes,
    dotted keys, comments, inline tables and values of several lines; only the table they stand in is kept here.
    """
    lines: dict[Keys, int] = {}
    table: Keys = ()
    arrays: dict[Keys, int] = {}  # path of an array of tables -> how many there are so far
    statement, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        if not statement:
            first = number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue  # a value that goes on in the next line
        if statement.lstrip().startswith("["):
            table = _header(parsed, arrays, statement.lstrip().startswith("[["))
            lines.setdefault(table, first)
        else:
            for path in _paths(parsed):
                lines.setdefault((*table, *path), first)
        statement = ""
    return lines


def _header(parsed: Mapping[str, Any], arrays: dict[Keys, int], is_array: bool) -> Keys:
    """The path of a `[table]` or `[[array of tables]]`, the latter with the number of the table, from 0."""
    keys = []
    while parsed:
        ((key, inner),) = parsed.items()
        keys.append(key)
        parsed = inner if isinstance(inner, dict) else {}
    path: Keys = ()
    for depth, key in enumerate(keys, 1):
        path += (key,)
        if is_array and depth == len(keys):
            arrays[path] = arrays.get(path, 0) + 1
        if path in arrays:
            path += (arrays[path] - 1,)
    return path


def _paths(table: Mapping[str, Any]) -> Iterator[Keys]:
    """Every key in a statement, inner ones after the tables that hold them."""
    for key, value in table.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *inner) for inner in _paths(value))
