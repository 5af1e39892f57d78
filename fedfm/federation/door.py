"""Where nodes come in: the new ones are asked for their cards, which enter the roll or are refused with a reason.

In a simulation every node is there from the start. Across machines sites come late, go away, come back, and some are
not who they say they are: the door is looked at before each round and while one goes on, and no answer is waited for.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import DataError, EngineError, FedfmError, RunError, UserError
from fedfm.federation.auditing import UNRECORDED, CoordinatorRecord
from fedfm.federation.exchange import pull, push
from fedfm.federation.messages import SiteCard, read_cards, sites_of_problem, write_query
from fedfm.federation.versions import refuse_other_version, version_of, with_unknown_version

RETRY_SECONDS = 30.0  # until a node that could not answer, or whose name another one had, is asked again
NONE: Mapping[str, Any] = {}


@dataclass
class Roll:
    """The sites of a run: site -> node and card; domain -> card with the labels that its sites agreed on.

    A site with a card and no node has been here and is away.
    """

    nodes: dict[str, int] = field(default_factory=dict)
    cards: dict[str, SiteCard] = field(default_factory=dict)
    domains: dict[str, DomainCard] = field(default_factory=dict)

    def site_domains(self) -> dict[str, str]:
        """Site -> domain, in order of site name."""
        return {site: self.cards[site].domain for site in sorted(self.cards)}

    def there(self, domain: str) -> list[str]:
        """Sorted names of the sites of a domain that are here now."""
        return sorted(site for site in self.nodes if self.cards[site].domain == domain)


@dataclass(frozen=True)
class Refusal:
    """Why a node does not come in. `sites`: the names it bears, as far as it said them."""

    error: FedfmError
    node: int
    sites: tuple[str, ...] = ()


@dataclass
class Change:
    """What a look at the door has found."""

    refused: list[Refusal] = field(default_factory=list)
    came: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)


class Door:
    """`before`: site -> what run.json knows of it, of a run that goes on or whose sites may come back."""

    def __init__(
        self, grid: Grid, config: RunConfig, roll: Roll, timeout: float, before: Mapping[str, Any] = NONE,
        audit: CoordinatorRecord = UNRECORDED,
    ):  # fmt: skip
        self.grid, self.config, self.roll, self.timeout = grid, config, roll, timeout
        self.before, self.audit = before, audit
        self._query = json.dumps(config.to_dict())
        self._open: dict[str, Message] = {}  # message id -> query
        self._heard = time.monotonic()
        self._ask_again: dict[int, float] = {}  # a node that was asked -> when it may be asked once more

    @property
    def waits(self) -> bool:
        """Is there a node that was asked and may still answer?"""
        return bool(self._open)

    def look(self) -> Change:
        """Who has gone, what has been answered since the last look, and queries to who is new."""
        found, now = Change(), time.monotonic()
        here = set(self.grid.get_node_ids())
        self._forget(here, found)
        if new := sorted(node for node in here if self._ask_again.get(node, 0.0) <= now):
            queries = [write_query(self._query, node) for node in new]
            self.audit.going_out(queries)
            self._open |= zip(push(self.grid, queries), queries, strict=True)
            self._ask_again |= dict.fromkeys(new, float("inf"))
            self._heard = now
        while self._open and (replies := pull(self.grid, list(self._open))):
            self._heard = time.monotonic()
            for reply in replies:
                query = self._open.pop(reply.metadata.reply_to_message_id, None)
                if query is not None:
                    self._take(query, reply, found)
        if time.monotonic() - self._heard > self.timeout:
            self._give_up(list(self._open))
        return found

    def _give_up(self, messages: Iterable[str]) -> None:
        for message in messages:
            self.audit.came_in(self._open.pop(message), None, RunError("no answer"))

    def _forget(self, here: Collection[int], found: Change) -> None:
        """A node that has gone is asked again when it comes back: its data may be others by then."""
        for site, node in list(self.roll.nodes.items()):
            if node not in here:
                del self.roll.nodes[site]
                found.left.append(site)
        for node in [node for node in self._ask_again if node not in here]:
            del self._ask_again[node]
        self._give_up([m for m, query in self._open.items() if query.metadata.dst_node_id not in here])

    def _take(self, query: Message, reply: Message, found: Change) -> None:
        node, problem, cards = query.metadata.dst_node_id, None, []
        try:
            cards = read_cards(reply, len(self.config.sites()))
        except FedfmError as error:
            problem = error
        self.audit.came_in(query, reply, problem)
        if problem is not None:
            if reply.has_error():  # of Flower's, not the site's own
                self._ask_again[node] = time.monotonic() + RETRY_SECONDS
            sites = tuple(site for site in sites_of_problem(reply) if not self._foreign(site, node))
            if not reply.has_error() and "problem" in reply.content and not version_of(reply):
                problem = with_unknown_version(problem, f'site "{", ".join(sites)}"' if sites else f"node {node}")
            found.refused.append(Refusal(problem, node, sites))
        for card in cards:
            if error := self._unfit(card, node):
                if isinstance(error, EngineError):
                    self._ask_again[node] = time.monotonic() + RETRY_SECONDS
                found.refused.append(Refusal(error, node, (card.site,) if isinstance(error, UserError) else ()))
                continue
            self.roll.nodes[card.site], self.roll.cards[card.site] = node, card
            found.came.append(card.site)

    def _unfit(self, card: SiteCard, node: int) -> FedfmError | None:
        """Why a card must not enter."""
        expected = self.config.sites()
        if expected.get(card.site) != card.domain:
            what = f'a node says that it is site "{card.site}" of domain {card.domain}; the configuration has none such'
            return EngineError(what, mend=f"its sites are {', '.join(expected)}")
        if foreign := self._foreign(card.site, node):
            return foreign
        if self.roll.nodes.get(card.site, node) != node:
            return EngineError(f'two nodes say that they are site "{card.site}"', mend="stop one of them")
        try:
            refuse_other_version(f'site "{card.site}"', str(card.fedfm))
        except UserError as error:
            return error
        if not self.config.engine.superlink:
            return None  # whose data are checked for all sites at once: see `refuse_changed_data`
        known = self.roll.cards.get(card.site)
        sha256 = known.sha256 if known else self.before.get(card.site, {}).get("sha256", card.sha256)
        if sha256 != card.sha256:
            return changed_data(card)
        return unlike(card, self.roll.domains[card.domain]) if card.domain in self.roll.domains else None

    def _foreign(self, site: str, node: int) -> EngineError | None:
        """Why a node that comes with another key than the configuration has for a site cannot speak for it."""
        tables = [table for domain in self.config.domains.values() for table in domain.site if table.name == site]
        wanted = next((table.key for table in tables if table.key), "")
        if not (wanted and self.config.engine.superlink) or (peer := self.audit.peer(node)) == wanted:
            return None
        what = f'a node says that it is site "{site}", and its key is {peer}; the configuration has {wanted}'
        return EngineError(what, mend="take its key off the list, or correct the key of the site in the configuration")


def changed_data(card: SiteCard) -> DataError:
    """The refusal of a site whose data are not those that it came with before."""
    what = f"the data of site {card.site} have changed since the run began (sha256 {card.sha256[:12]}...)"
    return DataError(what, where=card.source, mend="bring the old data back, or start a new run")


def unlike(card: SiteCard, domain: DomainCard) -> DataError | None:
    """Why a site that comes late does not fit what its domain agreed on when the run began."""
    mend = "start a new run with this site in it from the beginning"
    if card.image_shape != domain.image_shape:
        what = f"its images are {card.image_shape}, those of domain {card.domain} {domain.image_shape}"
        return DataError(f"site {card.site}: {what}", where=card.source, mend=mend)
    if new := [label for label in card.labels if label not in domain.labels]:
        what = f"site {card.site}: the run began without the label {', '.join(new)} of domain {card.domain}"
        return DataError(what, where=card.source, mend=mend)
    return None
