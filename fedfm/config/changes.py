"""What may differ in a configuration between the beginning of a run and the day on which it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

from fedfm.config.models import RunConfig
from fedfm.errors import ConfigError, Problem

FREE = (  # how long, where and on what it runs, what is told of it; data that moved are known by their digests
    "rounds", "data-root", "runs.*", "tracking.*", "engine.*", "evaluation.*", "early-stopping.*", "*.source",
    "sampling.minimum-sites", "domains.*.minimum-sites", "domains.*.site.*.key",
)  # fmt: skip
BOUND = ("engine.dtype",)  # though FREE names it


def refuse_other_config(config: RunConfig, before: Mapping[str, Any]) -> None:
    """A run goes on with what has decided its weights so far. `before`: `to_dict()` of its beginning.

    Raises ConfigError with every key that says something else.
    """
    old, new = dict(_flat(before)), dict(_flat(config.to_dict()))
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key) and _is_bound(key)]
    if changed:
        mend = "put back what it was, or begin a new run with this configuration"
        problems = [Problem(_sentence(old.get(key), new.get(key)), f"config.toml, {key}") for key in changed]
        raise ConfigError([*problems[:-1], Problem(problems[-1].what, problems[-1].where, mend)])


def _is_bound(key: str) -> bool:
    return key in BOUND or not any(fnmatch(key, pattern) for pattern in FREE)


def _sentence(old: Any, new: Any) -> str:
    then, now = ("nothing" if value is None else repr(value) for value in (old, new))
    return f"the run began with {then}, and cannot go on with {now}"


def _flat(table: Mapping[str, Any] | list, above: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, plain value); the tables of a list by their number."""
    for key, value in table.items() if isinstance(table, Mapping) else enumerate(table):
        inner = isinstance(value, Mapping) or (isinstance(value, list) and value and isinstance(value[0], Mapping))
        if inner:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
