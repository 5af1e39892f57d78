"""A run folder as a run of 3 domains, 7 sites and 6 rounds leaves it, made of formulas instead of training."""

from __future__ import annotations

import math
from pathlib import Path

from fedfm.config import RunConfig, load_config
from fedfm.results.run_folder import RunFolder

PRIMARY = {"medical": "auc", "finance": "macro_f1", "ner": "f1"}
METRICS = {
    "medical": ("accuracy", "macro_f1", "auc", "balanced_accuracy"),
    "finance": ("accuracy", "macro_f1"),
    "ner": ("precision", "recall", "f1", "token_accuracy"),
}
LABELS = {
    "medical": ["glioma", "meningioma", "no tumour", "pituitary"],
    "finance": [f"intent-{number:02d}" for number in range(77)],
    "ner": ["sentences", "Disease"],
}
ROUNDS = 6


def config() -> RunConfig:
    domains = {
        "medical": {"task": "image-classification", "sites": 2},
        "finance": {"task": "text-classification", "sites": 3},
        "ner": {"task": "token-classification", "sites": 2},
    }
    return load_config({"rounds": ROUNDS, "domains": domains})


def score(domain: str, metric: str, round: int, site: int = 0) -> float:
    """A saturating curve: `top - gap exp(-round / pace)`, a little lower for every further site."""
    number = list(METRICS).index(domain)
    top = 0.95 - 0.1 * number - 0.01 * METRICS[domain].index(metric)
    return top - 0.45 * math.exp(-round / (1.5 + number)) - 0.03 * site * math.cos(round + site)


def score_rows(round: int, split: str) -> list[dict]:
    sites = config().sites()
    rows = []
    for domain, names in METRICS.items():
        for metric in names:
            shared = {"round": round, "domain": domain, "split": split, "metric": metric}
            rows.append(
                shared | {"scope": "domain", "name": domain, "value": score(domain, metric, round), "num_examples": 80}
            )
            for number, site in enumerate((s for s, d in sites.items() if d == domain), 1):
                value = score(domain, metric, round, number)
                rows.append(shared | {"scope": "site", "name": site, "value": value, "num_examples": 40})
    primary = [score(domain, metric, round) for domain, metric in PRIMARY.items()]
    for metric, value in (("mean", sum(primary) / 3), ("worst", min(primary))):
        row = {"round": round, "scope": "federation", "name": "federation", "domain": "", "split": split}
        rows.append(row | {"metric": metric, "value": value, "num_examples": 240})
    return rows


def round_row(round: int) -> dict:
    row = {"round": round, "seconds": 1.5 + round / 8, "bytes_down": 310_000 * 7, "bytes_up": 290_000 * 7}
    return row | {"sites_asked": 7, "sites_used": 7, "sites_dropped": 0, "loss": 1.1 * 0.8**round}


def label_counts(domain: str, site: int) -> dict[str, int]:
    return {label: 5 + (17 * (i + 1) * (site + 1)) % 60 for i, label in enumerate(LABELS[domain])}


def events() -> list[dict]:
    """The whole stream of a run: what `RunFolder.event` is given, "event" included."""
    sites = config().sites()
    stream = [
        {
            "event": "run-started",
            "run": "20260102-030405-fedavg-1a2b3c",
            "strategy": "fedavg",
            "engine": "local",
            "seed": 0,
            "rounds": ROUNDS,
            "body": "tiny, LoRA r=8",
            "sites": sites,
            "primary": PRIMARY,
            "bytes_per_site": {"down": 310_000, "up": 290_000},
            "generated": ["medical", "finance", "ner"],
        }
    ]
    for round in range(1, ROUNDS + 1):
        stream.append({"event": "phase", "round": round, "phase": "train", "sites": 7})
        for site, domain in sites.items():
            work = {"round": round, "phase": "train", "site": site, "domain": domain, "seconds": 0.2}
            stream.append({"event": "site-finished"} | work)
        scores = {domain: score(domain, metric, round) for domain, metric in PRIMARY.items()}
        summary = {"scores": scores, "mean": sum(scores.values()) / 3, "worst": min(scores.values())}
        stream.append({"event": "round-finished"} | round_row(round) | summary)
    final = {domain: {name: score(domain, name, ROUNDS) for name in names} for domain, names in METRICS.items()}
    end = {"status": "finished", "rounds": ROUNDS, "seconds": 12.3, "final": final, "folder": "runs/x"}
    return [*stream, {"event": "run-finished"} | end]


def write_run(root: Path) -> RunFolder:
    """The run folder as the finished run leaves it."""
    folder = RunFolder.create(config(), root)
    for round in range(1, ROUNDS + 1):
        folder.add_round(round_row(round))
        folder.add_metrics(score_rows(round, "validation"))
    folder.add_metrics(score_rows(ROUNDS, "test"))
    sites = {
        site: {
            "domain": domain,
            "source": "generated",
            "sha256": "0" * 64,
            "label_counts": {"train": label_counts(domain, i)},
        }
        for i, (site, domain) in enumerate(config().sites().items())
    }
    folder.update(status="finished", primary=PRIMARY, sites=sites)
    return folder
