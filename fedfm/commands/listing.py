"""What `fedfm list` prints: the tables that a configuration picks from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fedfm.engines import ENGINES
from fedfm.models.body import NAMED_BODIES
from fedfm.strategies import STRATEGIES

Listing = tuple[Sequence[str], list[Sequence[str]]]  # header, rows

ENGINE_WORDS = {
    "local": "in this process, one site after the other: no server, no sockets",
    "ray": "long-lived workers on this machine or a Ray cluster; the same weights",
    "flower": "`flwr run`: Flower's own Ray simulation; the same weights, 15 s to start",
}
TASKS = [
    ("image-classification", "MedMNIST .npz, folders of images by label", "auc"),
    ("text-classification", "CSV, JSONL, Parquet, saved datasets", "macro_f1"),
    ("token-classification", "CoNLL (IOB1, IOB2, BIOES), saved datasets", "f1"),
]


def _strategies() -> Listing:
    rows = [(name, *strategy.summary[1:]) for name, strategy in STRATEGIES.items()]  # the family is told by the place
    return ("strategy", "paper", "shared by", "state", "cost"), rows


def _bodies() -> Listing:
    folder = ("FOLDER", "config.json and weights of an encoder: BERT, RoBERTa, ...")
    return ("body", ""), [*NAMED_BODIES.items(), folder]


def _domains() -> Listing:
    return ("task of a domain", "read from", "primary metric"), [*TASKS, ("any", 'source = "generated": no files', "")]


def _engines() -> Listing:
    return ("engine", ""), [(name, ENGINE_WORDS[name]) for name in ENGINES]


TABLES: dict[str, Callable[[], Listing]] = {
    "strategies": _strategies,
    "bodies": _bodies,
    "domains": _domains,
    "engines": _engines,
}


def show_tables(titles: Sequence[str]) -> None:
    """Print tables, an empty line between them."""
    for number, title in enumerate(titles):
        header, rows = TABLES[title]()
        table = Table(*header, box=None, pad_edge=False)
        for name, *cells in rows:
            table.add_row(Text(name, "bold"), *map(Text, cells))
        if number:
            print()
        Console().print(table)
