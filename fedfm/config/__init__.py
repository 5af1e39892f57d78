"""The run's configuration: frozen models, TOML files and `key=value` overrides, every error at once.

    config = load_config("experiments/quickstart.toml", ["rounds=3", "strategy.name=fedprox"])

Keys are kebab-case in files and overrides; a Python attribute has underscores. Keys that are not known are errors.
"""

from fedfm.config.changes import refuse_other_config
from fedfm.config.models import (
    BodyConfig,
    DomainConfig,
    EarlyStoppingConfig,
    EngineConfig,
    LocalConfig,
    RunConfig,
    RunsConfig,
    SamplingConfig,
    ScreeningConfig,
    SiteConfig,
    StrategyConfig,
    Task,
    Tuning,
)
from fedfm.config.reading import Check, load_config

__all__ = [
    "BodyConfig", "Check", "DomainConfig", "EarlyStoppingConfig", "EngineConfig", "LocalConfig", "RunConfig",
    "RunsConfig", "SamplingConfig", "ScreeningConfig", "SiteConfig", "StrategyConfig", "Task", "Tuning", "load_config",
    "refuse_other_config",
]  # fmt: skip
