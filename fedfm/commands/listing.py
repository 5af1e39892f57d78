"""What `fedfm list` prints: the tables that a configuration picks from."""

from __future__ import annotations

import inspect
from collections.abc import Callable

from fedfm.engines import ENGINES
from fedfm.models.body import NAMED_BODIES
from fedfm.strategies import STRATEGIES

Rows = list[tuple[str, str]]

ENGINE_WORDS = {
    "local": "in this process, one site after the other; no server, no sockets; the fastest for small runs and tests",
    "flower": "`flwr run` on Flower's own Ray simulation; the same apps, the same weights, some 15 s to start",
}
TASK_WORDS = {
    "image-classification": "MedMNIST .npz, folders of images by label, generated; primary metric auc",
    "text-classification": "CSV, JSONL, Parquet, saved datasets, generated; primary metric macro_f1",
    "token-classification": "CoNLL files (IOB1, IOB2, BIOES), saved datasets, generated; primary metric f1 of entities",
}


def _strategies() -> Rows:
    rows = []
    for name, strategy in STRATEGIES.items():
        paper = next(line for line in inspect.getmodule(strategy).__doc__.splitlines() if "http" in line or "," in line)
        rows.append((name, f"{inspect.getdoc(strategy).splitlines()[0]} [{paper.strip().rstrip(',:')}]"))
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "strategies": _strategies,
    "bodies": lambda: [*NAMED_BODIES.items(), ("PATH", "a folder with config.json of an encoder (BERT, RoBERTa, ...)")],
    "domains": lambda: [*TASK_WORDS.items(), ("", "a domain's name is free: [domains.NAME] task = one of these")],
    "engines": lambda: [(name, ENGINE_WORDS[name]) for name in ENGINES],
}
