"""Sources of sites, and the call that asks them who they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.door import Door, Roll
from fedfm.federation.enrolment import enrol

EXAMPLES = {
    "negative": ("profit fell sharply", "the loss widened again", "sales were weak"),
    "neutral": ("the meeting is on monday", "shares were unchanged", "the report has ten pages"),
    "positive": ("profit rose sharply", "a strong quarter", "sales beat all hopes"),
}
SENTENCES = {
    "ORG": [("Acme", "B-ORG"), ("Bank", "I-ORG"), ("fell", "O")],
    "PER": [("Ann", "B-PER"), ("Lee", "I-PER"), ("rose", "O")],
    "LOC": [("in", "O"), ("Oslo", "B-LOC"), ("today", "O")],
}


def call(config, node_app=app, nodes: int | None = None, wait: float = 0.0):
    grid = LocalGrid(node_app, len(config.sites()) if nodes is None else nodes)
    return enrol(Door(grid, config, Roll(), timeout=20), wait)


def write_texts(path: Path, labels: list[str]) -> str:
    rows = [f"{text} {n},{label}" for n in range(6) for label in labels for text in EXAMPLES[label]]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


def write_words(folder: Path, kinds: list[str]) -> str:
    folder.mkdir()
    for split, times in (("train", 6), ("dev", 2), ("test", 2)):
        sentences = [SENTENCES[kind] for _ in range(times) for kind in kinds]
        text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences)
        (folder / f"{split}.txt").write_text(text + "\n", encoding="utf-8")
    return str(folder)


def write_images(path: Path, size: int, channels: int) -> str:
    draw = np.random.default_rng(size)
    arrays = {}
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        shape = (count, size, size) if channels == 1 else (count, size, size, channels)
        arrays[f"{split}_images"] = draw.integers(0, 256, shape, dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None]
    np.savez(path, **arrays)
    return str(path)


def own(task: str, **sources: str) -> dict:
    return {"task": task, "site": [{"name": name, "source": source} for name, source in sources.items()]}
