"""Small data sets in files as sites hold them: a folder of PNG images, a CSV table, CoNLL files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedfm.config import RunConfig
from fedfm.engines import load_config

SPLITS = {"train": 12, "validation": 6, "test": 6}
WORDS = {
    "negative": ("profit fell sharply", "the loss widened again", "sales were weak"),
    "neutral": ("the meeting is on monday", "shares were unchanged", "the report has ten pages"),
    "positive": ("profit rose sharply", "a strong quarter", "sales beat all hopes"),
}
SENTENCES = (
    (("Acme", "B-ORG"), ("Bank", "I-ORG"), ("fell", "O")),
    (("Ann", "B-PER"), ("Lee", "I-PER"), ("rose", "O")),
    (("in", "O"), ("Oslo", "B-LOC"), ("today", "O")),
)
SITES = {"st-mary": "medical", "bank-one": "finance", "newsroom": "ner"}
TASKS = {"medical": "image-classification", "finance": "text-classification", "ner": "token-classification"}


def write_scans(folder: Path, seed: int = 0) -> Path:
    """Images of 16 by 16: dark ones are "sick", bright ones "well"; `<split>/<label>/<number>.png`."""
    draw = np.random.default_rng(seed)
    for split, count in SPLITS.items():
        for label, mean in (("sick", 80), ("well", 170)):
            place = folder / split / label
            place.mkdir(parents=True)
            for number in range(count // 2):
                pixels = np.clip(draw.normal(mean, 30, (16, 16)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


def write_reports(folder: Path, seed: int = 0) -> Path:
    """`<split>.csv` with columns text and label."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(seed)
    for split, count in SPLITS.items():
        lines = ["text,label"]
        for number in range(count):
            label = list(WORDS)[number % len(WORDS)]
            lines.append(f"{draw.choice(WORDS[label])} {split} {seed}{number},{label}")
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def write_news(folder: Path, seed: int = 0) -> Path:
    """`<split>.txt` in CoNLL's two columns."""
    folder.mkdir(parents=True)
    for split, count in SPLITS.items():
        sentences = [(*SENTENCES[number % 3], (f"{split}{seed}x{number}", "O")) for number in range(count)]
        text = "\n\n".join("\n".join(f"{word}\t{tag}" for word, tag in sentence) for sentence in sentences)
        (folder / f"{split}.txt").write_text(text + "\n", encoding="utf-8")
    return folder


WRITERS = {"medical": write_scans, "finance": write_reports, "ner": write_news}


def write_sources(folder: Path, sites: dict[str, str] | None = None) -> dict[str, Path]:
    """A source for each site (site -> domain), of other data at each."""
    sites = sites or SITES
    return {site: WRITERS[domain](folder / site, seed) for seed, (site, domain) in enumerate(sites.items())}


def real_config(folder: Path, sources: dict[str, Path], *overrides: str, sites: dict[str, str] | None = None):
    """One layer, two rounds, a source of its own at every site."""
    sites = sites or SITES
    domains: dict[str, Any] = {}
    for site, domain in sites.items():
        table = domains.setdefault(domain, {"task": TASKS[domain], "site": []})
        table["site"].append({"name": site, "source": str(sources[site])})
    data = {
        "rounds": 2,
        "runs": {"folder": str(folder / "runs")},
        "body": {"layers": 1, "image-tokens": 4},
        "local": {"batch-size": 4, "max-length": 16},
        "domains": domains,
    }
    return load_config(data, *overrides)


def write_config(config: RunConfig, file: Path) -> Path:
    file.write_text(config.to_toml(), encoding="utf-8")
    return file


def read_json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))
