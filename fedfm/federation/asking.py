"""The sites of a run as seen by its rounds: pack weights for each domain, ask sites, get answers in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.errors import RunError
from fedfm.federation.enrolment import Roll
from fedfm.federation.exchange import exchange, in_order
from fedfm.federation.journal import Journal
from fedfm.federation.messages import Answer, Order, read_answer, to_record, write_order

Packed = dict[str, ArrayRecord]  # domain -> what its sites are sent


class Sites:
    """Who is asked, and how. `names`: domain -> names of the tensors that its sites are sent."""

    def __init__(self, grid: Grid, config: RunConfig, roll: Roll, names: dict[str, list[str]], journal: Journal):
        self.grid, self.roll, self.names, self.journal = grid, roll, names, journal
        self.timeout = config.engine.timeout
        self.config_text = json.dumps(config.to_dict())
        self.state_folder = str((journal.folder.path / "checkpoint" / "sites").resolve())

    def domain_of(self, site: str) -> str:
        return self.roll.cards[site].domain

    def pack(self, weights: Arrays) -> Packed:
        """The messages' records of weights, one a domain, shared by the messages to all of its sites."""
        return {d: to_record({name: weights[name] for name in names}) for d, names in self.names.items()}

    def expected(self, weights: Arrays, site: str) -> Arrays:
        """The tensors that a site was sent: what its update must look like."""
        return {name: weights[name] for name in self.names[self.domain_of(site)]}

    def ask(
        self, kind: str, sites: Sequence[str], round: int, packed: Packed, split: str = ""
    ) -> Iterator[tuple[str, Answer]]:
        """(site, answer) in the order of `sites`, one at a time; `kind` is "train" or "evaluate"."""
        phase = split or kind
        self.journal.tell("phase", round=round, phase=phase, sites=len(sites))
        orders = {site: self._order(kind, site, round, packed, split) for site in sites}
        return in_order(self._answers(orders, round, phase), sites)

    def _order(self, kind: str, site: str, round: int, packed: Packed, split: str) -> Message:
        domain = self.domain_of(site)
        order = Order(site, round, self.roll.domains[domain], self.config_text, split, self.state_folder)
        return write_order(kind, order, packed[domain], self.roll.nodes[site])

    def _answers(self, orders: dict[str, Message], round: int, phase: str) -> Iterator[tuple[str, Answer]]:
        for site, reply in exchange(self.grid, orders, self.timeout):
            if reply is None:
                answer = Answer(
                    site, {}, {}, 0, RunError(f"no answer, and none of another site for {self.timeout:g} s")
                )
            else:
                answer = read_answer(reply)
            if answer.problem is None and answer.site != site:
                answer = Answer(site, {}, {}, 0, RunError(f'the reply says that it comes from site "{answer.site}"'))
            seconds = answer.metrics.get("seconds", math.nan)
            self.journal.tell(
                "site-finished", round=round, phase=phase, site=site, domain=self.domain_of(site), seconds=seconds
            )
            yield site, answer
