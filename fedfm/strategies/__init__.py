"""The strategies: a table, and nothing else. A new one is a file beside this one and a row here."""

from __future__ import annotations

import dataclasses
import math

from fedfm.config import RunConfig, StrategyConfig
from fedfm.errors import ConfigError, Problem, did_you_mean
from fedfm.strategies.base import Strategy, Summary, Update
from fedfm.strategies.fedavg import FedAvg
from fedfm.strategies.fedprox import FedProx

STRATEGIES: dict[str, type] = {
    "fedavg": FedAvg,
    "fedprox": FedProx,
}

__all__ = ["STRATEGIES", "Strategy", "Summary", "Update", "check_strategy", "make_strategy"]


def make_strategy(settings: StrategyConfig) -> Strategy:
    """The strategy that [strategy] names, with its settings. Raises ConfigError."""
    problems = _problems(settings)
    if problems:
        raise ConfigError(problems)
    own = {key.replace("-", "_"): value for key, value in settings.own_keys.items()}
    return STRATEGIES[settings.name](server_learning_rate=settings.server_learning_rate, **own)


def check_strategy(config: RunConfig) -> list[Problem]:
    """What is wrong with [strategy]: a check for `load_config`."""
    return _problems(config.strategy)


def _problems(settings: StrategyConfig) -> list[Problem]:
    if settings.name not in STRATEGIES:
        what = f'unknown strategy "{settings.name}".{did_you_mean(settings.name, STRATEGIES)}'
        return [Problem(what, "strategy.name", f"known: {', '.join(STRATEGIES)}")]
    fields = _keys(STRATEGIES[settings.name])
    problems = []
    for key, value in settings.own_keys.items():
        where = f"strategy.{key}"
        if key not in fields:
            what = f'strategy "{settings.name}" has no such key.{did_you_mean(key, fields) or _owners(key)}'
            problems.append(Problem(what, where, f"its keys: {', '.join(fields)}"))
        elif isinstance(value, bool) or not isinstance(value, int | float):
            problems.append(Problem(f"must be a number, got {value!r}", where))
        elif value < 0 or not math.isfinite(value):
            problems.append(Problem(f"must be a finite number, at least 0, got {value}", where))
    return problems


def _keys(strategy: type) -> list[str]:
    """The keys that [strategy] may hold for it, besides `name`."""
    return [field.name.replace("_", "-") for field in dataclasses.fields(strategy)]


def _owners(key: str) -> str:
    """' "fedprox" has it.' for a key of other strategies."""
    owners = [f'"{name}"' for name, strategy in STRATEGIES.items() if key in _keys(strategy)]
    return f" {', '.join(owners)} {'has' if len(owners) == 1 else 'have'} it." if owners else ""
