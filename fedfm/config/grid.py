"""A grid of settings: `key=a,b,c` for each key, a cell for each combination."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence

from fedfm.errors import ConfigError, Problem

Grid = dict[str, list[str]]
OPEN, CLOSE = "[{", "]}"


def parse_grid(words: Sequence[str]) -> Grid:
    """`["strategy.name=fedavg,fedprox", "seed=0,1"]` -> key -> its values. Raises ConfigError.

    A comma inside quotes or brackets separates nothing: `body.lora-targets=["query", "value"]` is one value.
    """
    grid: Grid = {}
    problems = []
    for word in words:
        key, sign, text = word.partition("=")
        values = split_values(text) if sign else []
        if not sign or not key.strip():
            problems.append(Problem(f'"{word}" is not of the form key=a,b,c', "command line", "e.g. seed=0,1,2"))
        elif key.strip() in grid:
            problems.append(Problem(f"{key.strip()} is given twice", "command line", "one key=a,b,c for each key"))
        elif empty := [value for value in values if not value]:
            problems.append(Problem(f'"{word}" has {len(empty)} empty value(s)', "command line", "e.g. seed=0,1,2"))
        elif len(set(values)) < len(values):
            problems.append(Problem(f'"{word}" names a value twice', "command line", "each value once"))
        else:
            grid[key.strip()] = values
    if problems:
        raise ConfigError(problems)
    return grid


def grid_of(values: Mapping[str, object]) -> Grid:
    """The same from Python: key -> a value, or a list of values."""
    lists = {key: value if isinstance(value, list | tuple | range) else [value] for key, value in values.items()}
    return {key: [one if isinstance(one, str) else json.dumps(one) for one in many] for key, many in lists.items()}


def split_values(text: str) -> list[str]:
    """At the commas that stand outside quotes and brackets."""
    values, depth, quote = [""], 0, ""
    for sign in text:
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        depth += (sign in OPEN) - (sign in CLOSE) if not quote else 0
        if sign == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += sign
    return [value.strip() for value in values]


def cells_of(grid: Grid) -> list[dict[str, str]]:
    """Every combination, key -> value; the last key changes fastest."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def label_of(cell: Mapping[str, str], grid: Grid) -> str:
    """What tells a setting from the others of the grid, its seed apart: "fedprox", "fedprox proximal-mu=0.1"."""
    parts = []
    for key, value in cell.items():
        if key == "seed" or len(grid[key]) == 1:
            continue
        parts.append(value if key == "strategy.name" else f"{key.rpartition('.')[2]}={value}")
    return " ".join(parts) or cell.get("strategy.name", "as configured")
