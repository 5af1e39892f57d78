"""Tiny federations over the real in-process grid, with eyes and hands on what its sites send.

A *node app* is what `LocalGrid` calls: `(message, context) -> reply`. The real one is `client_app.app`; the ones below
wrap it, so that a test sees every real message, or spoils one, and everything else is the program itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Message, RecordDict
from safetensors.numpy import load_file

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.engines import load_config
from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.messages import Order, read_answer, read_order, write_answer
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder

NodeApp = Callable[[Message, Context], Message]
IMAGES = {"task": "image-classification", "max-examples": 12}
TEXTS = {"task": "text-classification", "max-examples": 12}
WORDS = {"task": "token-classification", "max-examples": 12}


def tiny(folder: Path, *overrides: str, **domains: dict[str, Any]) -> RunConfig:
    """One layer, four image tokens, six training examples a site; without `domains` the three tasks, two sites each."""
    data = {
        "rounds": 1,
        "runs": {"folder": str(folder)},
        "body": {"layers": 1, "image-tokens": 4},
        "local": {"batch-size": 4, "max-length": 16},
        "domains": domains or {"medical": IMAGES, "finance": TEXTS, "ner": WORDS},
    }
    return load_config(data, *overrides)


@dataclass
class Outcome:
    """What a run left behind."""

    folder: RunFolder
    weights: Arrays
    sha256: str

    def private(self) -> dict[str, bytes]:
        """The files that sites kept for themselves: name -> content."""
        root = self.folder.path / "checkpoint" / "sites"
        return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.safetensors"))}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return events(self.folder, kind)


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    import json

    lines = (folder.path / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def train_federation(
    config: RunConfig, node_app: NodeApp = app, folder: RunFolder | None = None, listen=lambda event: None
) -> Outcome:
    """The round loop over a local grid of as many nodes as sites; `folder`: one to go on in."""
    folder = folder or RunFolder.create(config)
    RoundLoop(LocalGrid(node_app, len(config.sites())), config, folder, listen).run()
    return outcome(folder)


def outcome(folder: RunFolder) -> Outcome:
    weights = load_file(folder.path / "model" / "weights.safetensors")
    return Outcome(folder, weights, folder.info["final_weights_sha256"])


@dataclass
class Recorder:
    """A node app that keeps what went down and up: (kind, order, tensors that were sent, tensors that came back)."""

    inner: NodeApp = app
    seen: list[tuple[str, Order, Arrays, Arrays]] = field(default_factory=list)

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.inner(message, context)
        if message.metadata.message_type != "query":
            order, received = read_order(message)
            self.seen.append((message.metadata.message_type, order, received, read_answer(reply).arrays))
        return reply

    def of(self, kind: str) -> Iterable[tuple[Order, Arrays, Arrays]]:
        return [(order, down, up) for k, order, down, up in self.seen if k == kind]


@dataclass
class Spoiler:
    """A node app whose site `site` does its work in round `round` and then sends `spoil(delta)` in place of it."""

    site: str
    spoil: Callable[[Arrays], Arrays]
    round: int = 1
    kind: str = "train"

    def __call__(self, message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != self.kind:
            return reply
        order, _ = read_order(message)
        if order.sites != (self.site,) or order.round != self.round:
            return reply
        answer = read_answer(reply)
        return write_answer(replace(answer, arrays=self.spoil(answer.arrays)), message)


def with_names(names: dict[int, str]) -> NodeApp:
    """A node app whose nodes are told their site by node configuration, as deployed ones are: node id -> site."""

    def named(message: Message, context: Context) -> Message:
        node = message.metadata.dst_node_id
        return app(message, Context(context.run_id, node, {"site": names[node]}, RecordDict(), {}, 0))

    return named


def same(left: Arrays, right: Arrays, group: str = "") -> bool:
    """Are the tensors (of a group) equal to the bit?"""
    names = [name for name in left if name.startswith(group)]
    assert names, f"there is no tensor of group {group}"
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in names)
