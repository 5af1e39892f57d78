"""A grid of tiny runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import TEXTS, WORDS

GRID = {"strategy.name": ["fedavg", "local-only", "centralised"], "seed": [0, 1, 2]}


def tiny_source(folder: Path) -> dict:
    return {
        "rounds": 1,
        "runs": {"folder": str(folder)},
        "body": {"layers": 1},
        "local": {"batch-size": 4, "max-length": 16},
        "domains": {"finance": {**TEXTS, "sites": 2}, "ner": {**WORDS, "sites": 2}},
    }
