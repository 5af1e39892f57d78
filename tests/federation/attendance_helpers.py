"""Runs whose sites come and go, as they do across machines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from federation_helpers import TEXTS, Outcome, events, outcome, with_names
from flwr.app import Error, Message

from fedfm.config import RunConfig
from fedfm.engines.local import LocalGrid
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder

THREE = {**TEXTS, "sites": 3, "max-examples": 18, "minimum-sites": 1}
NAMES = {1: "finance-1", 2: "finance-2", 3: "finance-3"}


@dataclass
class Coming:
    """A grid of deployed sites: `here` says which nodes are online, and a test changes it as the run goes.

    `slow`: (node, kind) whose replies to messages of that kind come only once the test lets them out.
    """

    names: dict[int, str]
    here: set[int]
    slow: set[tuple[int, str]] = field(default_factory=set)
    spoil: Callable[[Message, Message], Message] = lambda message, reply: reply

    def __post_init__(self):
        inner = with_names(self.names)
        self.grid = _Grid(lambda message, context: self.spoil(message, inner(message, context)), len(self.names))
        self.grid.coming = self


class _Grid(LocalGrid):
    coming: Coming

    def get_node_ids(self):
        return sorted(self.coming.here)

    def get_nodes(self):
        return []

    def pull_messages(self, message_ids):
        """As a SuperLink: nothing of who is slow yet, an error for who has gone."""
        for name in message_ids:
            message = self._waiting.get(name)
            if message is None:
                continue
            node = message.metadata.dst_node_id
            if node not in self.coming.here:
                del self._waiting[name]
                return [Message(Error(5, "Node Unavailable"), reply_to=message)]
            if (node, message.metadata.message_type) not in self.coming.slow:
                return super().pull_messages([name])
        return []


def deployed(config: RunConfig, *overrides: str) -> RunConfig:
    return config.replace("engine.name=flower", "engine.superlink=net", "engine.wait=0.5", *overrides)


def play(config: RunConfig, coming: Coming, folder: RunFolder | None = None, listen=lambda event: None) -> Outcome:
    folder = folder or RunFolder.create(config)
    RoundLoop(coming.grid, config, folder, listen).run()
    return outcome(folder)


def when(kind: str, round: int, act: Callable[[], None]):
    """A listener that acts once, at the first event of a kind in a round."""
    done = []

    def listen(event):
        if event["event"] == kind and event.get("round") == round and not done:
            done.append(event)
            act()

    return listen


def messages(done: Outcome | RunFolder, kind: str) -> list[str]:
    folder = done.folder if isinstance(done, Outcome) else done
    return [event["message"] for event in events(folder, kind)]
