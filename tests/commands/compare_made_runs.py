"""Runs of a comparison that were never run: folders with the scores that a test gives them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from fedfm.config import load_config
from fedfm.results.comparison import CellRun
from fedfm.results.run_folder import RunFolder

UNDEFINED = math.nan


def made_run(
    root: Path, label: str, seed: int, test: Mapping[str, float], validation: Mapping[str, float] | None = None
) -> CellRun:
    """A run of `label` (a strategy) that has ended after two rounds.

    test: domain -> score, NaN where it is undefined; validation: domain -> score of the second round, half of it in
    the first, by default that of `test`; a domain that it lacks was never validated.
    """
    domains = {domain: {"task": "image-classification", "sites": 2} for domain in test}
    config = load_config({"rounds": 2, "seed": seed, "strategy": {"name": label}, "domains": domains})
    folder = RunFolder.create(config, root / f"{label}-{seed}")
    shared = {"metric": "auc", "model": "global", "num_examples": 8}
    for round in (1, 2):
        folder.add_round({"round": round, "seconds": 1.0, "bytes_down": 1_000_000, "bytes_up": 500_000, "loss": 1.0,
                          "sites_asked": 2, "sites_used": 2, "sites_dropped": 0, "virtual_seconds": 0.0})  # fmt: skip
        for domain, score in (test if validation is None else validation).items():
            row = {"round": round, "scope": "domain", "name": domain, "domain": domain, "split": "validation"}
            folder.add_metrics([shared | row | {"value": score * round / 2}])
    steps = {"round": 2, "scope": "domain", "split": "train", "metric": "steps", "num_examples": 8, "value": 4.0}
    for domain, score in test.items():
        own = {"name": domain, "domain": domain}
        at = {"round": 2, "scope": "domain", "split": "test", "value": score}
        folder.add_metrics([shared | own | at, steps | own])
    final = {domain: {"auc": None if math.isnan(score) else score} for domain, score in test.items()}
    folder.update(
        status="finished", rounds=2, seconds=2.0, bytes_up=1_000_000, bytes_down=2_000_000, final=final, sites={},
        primary=dict.fromkeys(test, "auc"),
    )  # fmt: skip
    return CellRun(f"{label}-{seed}", label, label, seed, folder)
