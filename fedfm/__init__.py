"""Federated fine-tuning of foundation models across domains.

import fedfm
run = fedfm.run("experiments/quickstart.toml", "rounds=3", "strategy.name=fedprox")
run.rounds      # a DataFrame, one row a round
run.metrics     # a DataFrame, one row a score
run.folder      # where all of it lies
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "run": "fedfm.engines",
    "resume": "fedfm.engines",
    "Run": "fedfm.engines",
    "compare": "fedfm.commands.compare",
    "load_config": "fedfm.engines",
    "RunConfig": "fedfm.config",
    "load_model": "fedfm.training.trained",
    "FedfmError": "fedfm.errors",
    "UserError": "fedfm.errors",
    "RunError": "fedfm.errors",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    """Public names are imported when first used: a site that is only asked for its name need not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'fedfm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
