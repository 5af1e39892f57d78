"""The sites of a run as seen by its rounds: pack weights for each domain, ask packs of sites, get answers in order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.errors import RunError
from fedfm.federation.enrolment import Roll
from fedfm.federation.exchange import exchange, in_order
from fedfm.federation.journal import Journal
from fedfm.federation.limits import most_of_tally, most_of_update
from fedfm.federation.messages import Answer, Order, join_more, read_answer, to_record, write_order
from fedfm.federation.packing import Pack, packs_to_score, packs_to_train, work_of
from fedfm.strategies import Strategy
from fedfm.strategies.base import State
from fedfm.strategies.lora import to_rank

Kind = tuple[str, int]  # of the model that a site is sent: the name of a variant, the rank of the LoRA
NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True)
class Packed:
    """What sites are sent: a record for each domain and kind of model, shared by the messages that carry it."""

    records: Mapping[tuple[str, Kind], ArrayRecord]
    kind_of: Callable[[str], Kind]

    def of(self, domain: str, site: str) -> ArrayRecord:
        """The record that a site of `domain` gets."""
        return self.records[domain, self.kind_of(site)]


class Sites:
    """Who is asked, and how.

    `names`: domain -> names of the tensors that its sites are sent. `rows`: domain -> how many of its sites train at
    once.
    """

    def __init__(
        self, grid: Grid, config: RunConfig, roll: Roll, names: dict[str, list[str]], journal: Journal,
        rows: Mapping[str, int], strategy: Strategy,
    ):  # fmt: skip
        self.grid, self.config, self.roll, self.names, self.journal = grid, config, roll, names, journal
        self.rows, self.strategy, self.ranks = rows, strategy, config.ranks()
        alie = config.simulation.attack == "alie"  # whose attackers know one another's
        self.each = (strategy.each or alie) and not strategy.pools
        self.together = config.engine.name != "flower"  # whose nodes are real: each has its site and no other
        self.config_text = json.dumps(config.to_dict())
        self.folder = str(journal.folder.path.resolve())

    def domain_of(self, site: str) -> str:
        return self.roll.cards[site].domain

    def own_model(self, split: str) -> str:
        """How sites come to a model of their own to score on `split`, as in `Order.model`; "" where they have none."""
        if self.strategy.tunes_after and split == "test":
            return "tuned"
        of_strategy = self.strategy.groups_sites or "personal" in self.strategy.keeps
        return "personal" if of_strategy or "private" in self.config.sharing.values() else ""

    def pack(self, weights: Arrays, state: State, along: bool = True, own: bool = True) -> Packed:
        """`along`: with what the strategy sends beside the weights. `own`: to each site the model of its group, of its
        rank; the server's otherwise."""
        more = {what: state[what] for what in self.strategy.sends if along and what in state}
        variants = {"": {} if along and self.strategy.candidates else weights}  # candidates come along as `sends`
        variants |= self.strategy.variants(weights, state) if own else {}
        whole = self.config.body.lora_rank
        ranks = {domain: {whole} for domain in self.names}
        for site in self.roll.cards if own else ():
            ranks[self.domain_of(site)].add(self.ranks[site])
        records = {
            (domain, (variant, rank)): to_record(
                to_rank(_of_domain(arrays, more, self._names(domain) if own else names), rank)
            )
            for domain, names in self.names.items()
            for variant, arrays in variants.items()
            for rank in sorted(ranks[domain])
        }
        if not own:
            return Packed(records, lambda site: ("", whole))
        return Packed(records, lambda site: (self.strategy.variant_of(state, site), self.ranks[site]))

    def _names(self, domain: str) -> list[str]:
        """Names of what a domain's sites train on: with all data in one pool, of everything."""
        return sorted(set().union(*self.names.values())) if self.strategy.pools == "all" else self.names[domain]

    def expected(self, weights: Arrays, site: str, round: int) -> Arrays:
        """The tensors whose change a site sends in a round: what its update must look like."""
        names = self._names(self.domain_of(site))
        whole = {name: weights[name] for name in names if self.strategy.shares(name, round)}
        return to_rank(whole, self.ranks[site])

    def train(
        self, sites: Sequence[str], round: int, packed: Packed, shares: Mapping[str, float] = NOTHING
    ) -> Iterator[Answer]:
        """Answers of the packs that the sites form, in the packs' order, one at a time. `shares`: see `Order`."""
        packs = packs_to_train(sites, self.roll, self.config, self.rows, packed.kind_of, self.strategy.pools)
        parts = {pack: tuple(shares.get(site, 1.0) for site in pack) for pack in packs} if shares else {}
        orders = {pack: self._order("train", pack, round, packed, shares=parts.get(pack, ())) for pack in packs}
        return self._ask(orders, round, "train")

    def evaluate(self, round: int, packed: Packed, split: str, model: str = "global") -> Iterator[Answer]:
        """Answers of all sites about one split, as `train`. `model`: see `Order`."""
        packs = packs_to_score(self.roll.cards, self.roll, split, self.together, packed.kind_of)
        orders = {pack: self._order("evaluate", pack, round, packed, split, model) for pack in packs}
        return self._ask(orders, round, split)

    def _ask(self, orders: dict[Pack, Message], round: int, phase: str) -> Iterator[Answer]:
        self.journal.tell("phase", round=round, phase=phase, sites=sum(map(len, orders)))
        self.journal.audit.going_out(orders.values())
        return (answer for _, answer in in_order(self._answers(orders, round, phase), list(orders)))

    def _order(
        self, kind: str, pack: Pack, round: int, packed: Packed, split: str = "", model: str = "global",
        shares: tuple[float, ...] = (),
    ) -> Message:  # fmt: skip
        domain = self.domain_of(pack[0])
        pooled = sorted({self.domain_of(site) for site in pack}) if kind == "train" and self.strategy.pools else ()
        cards = tuple(self.roll.domains[one] for one in pooled)
        order = Order(
            pack, round, self.roll.domains[domain], self.config_text, split, self.rows[domain], self.each,
            work_of(pack, self.roll, self.config), self.folder, model, packed.kind_of(pack[0])[1], cards, shares,
        )  # fmt: skip
        return write_order(kind, order, packed.of(domain, pack[0]), self.roll.nodes[pack[0]])

    def _answers(self, orders: dict[Pack, Message], round: int, phase: str) -> Iterator[tuple[Pack, Answer]]:
        for pack, reply in exchange(self.grid, orders, self.config.engine.timeout):
            if reply is None:
                timeout = self.config.engine.timeout
                answer = Answer(pack, problem=RunError(f"no answer, and none of another site for {timeout:g} s"))
            else:
                answer = read_answer(reply, self._most(pack, orders[pack], phase))
            if answer.problem is None and answer.sites != pack:
                sender = " + ".join(answer.sites)
                answer = Answer(pack, problem=RunError(f'the reply says that it comes from site "{sender}"'))
            self.journal.audit.came_in(orders[pack], reply, answer.problem)
            if not self.strategy.pools:
                self.journal.sent(round, phase, pack, self.domain_of(pack[0]), answer.arrays, answer.num_bytes)
            seconds = answer.metrics.get("seconds", [math.nan] * len(pack))
            fields = {"round": round, "phase": phase, "domain": self.domain_of(pack[0])}
            self.journal.tell_many(
                "site-finished", [fields | {"site": site, "seconds": s} for site, s in zip(pack, seconds, strict=True)]
            )
            yield pack, replace(answer, sites=pack)

    def _most(self, pack: Pack, order: Message, phase: str) -> int:
        """Bytes that the answer to an order may have."""
        if phase == "train":
            updates = len(pack) if self.each else 1
            return most_of_update(order.content["weights"].count_bytes(), len(self.strategy.returns), updates)
        labels = len(self.roll.domains[self.domain_of(pack[0])].labels)
        return most_of_tally([self.roll.cards[site] for site in pack], labels, phase)


def _of_domain(weights: Arrays, along: Mapping[str, Arrays], names: Sequence[str]) -> Arrays:
    """What a domain's sites are sent: their tensors, and what the strategy sends along of the same names."""
    more = {what: {name: arrays[name] for name in names if name in arrays} for what, arrays in along.items()}
    return join_more({name: weights[name] for name in names if name in weights}, more)
