"""Runs of one round to predict with and to export, without figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedfm.engines import ENGINES, load_config
from fedfm.results.run_folder import RunFolder

DOMAINS = {
    "medical": {"task": "image-classification", "max-examples": 12, "sites": 1},
    "finance": {"task": "text-classification", "max-examples": 12, "sites": 1},
}


def make_run(root: Path, *overrides: str, domains: Mapping[str, Any] = DOMAINS) -> Path:
    """A finished run in float64 with large steps, so that all that trains differs from its start."""
    data = {"rounds": 1, "engine": {"dtype": "float64"}, "domains": dict(domains)}
    data["local"] = {"batch-size": 6, "learning-rate": 0.02, "head-learning-rate": 0.05, "max-length": 24}
    config = load_config(data, *overrides)
    folder = RunFolder.create(config, root)
    ENGINES["local"](config, folder, lambda event: None)
    return folder.path
