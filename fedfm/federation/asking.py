"""The sites of a run as seen by its rounds: pack weights for each domain, ask packs of sites, get answers in order."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.errors import RunError
from fedfm.federation.compression import transform_of
from fedfm.federation.door import Roll
from fedfm.federation.exchange import POLL_SECONDS, REMOTE_POLL_SECONDS, exchange, in_order, late
from fedfm.federation.journal import Journal
from fedfm.federation.limits import most_of_tally, most_of_update
from fedfm.federation.messages import (
    Answer,
    Order,
    Scoring,
    join_more,
    read_answer,
    to_record,
    write_order,
)  # fmt: skip
from fedfm.federation.packing import Pack, packs_to_score, packs_to_train, work_of
from fedfm.federation.quick_sites import QuickSites
from fedfm.models.body import load_body
from fedfm.strategies import Strategy
from fedfm.strategies.base import State
from fedfm.strategies.lora import to_rank

Kind = tuple[str, int]  # of the model that a site is sent: the name of a variant, the rank of the LoRA
NOTHING: Mapping[str, float] = {}


class Sent(NamedTuple):
    """An order, and the message that carries it."""

    order: Order
    message: Message


@dataclass(frozen=True)
class Packed:
    """What sites are sent: a record for each domain and kind of model, shared by the messages that carry it."""

    records: Mapping[tuple[str, Kind], ArrayRecord]
    kind_of: Callable[[str], Kind]

    def of(self, domain: str, site: str) -> ArrayRecord:
        """The record that a site of `domain` gets."""
        return self.records[domain, self.kind_of(site)]


@dataclass
class Aside:
    """Scores that come along with other work: of the weights after `round`, answers to each of the `scorings`."""

    round: int
    scorings: tuple[Scoring, ...]
    answers: dict[Scoring, list[Answer]] = field(default_factory=dict)

    def take(self, pack: Pack, answer: Answer) -> None:
        """Keep what the answer of a pack holds of the scorings; a reason where it holds nothing."""
        for scoring in self.scorings:
            found = answer.beside.get(scoring)
            if found is None or found.sites != pack:
                found = Answer(pack, problem=answer.problem or RunError("its answer does not hold it"))
            self.answers.setdefault(scoring, []).append(found)

    def of(self, scoring: Scoring) -> list[Answer]:
        """The answers in order of sites: sums depend on it."""
        return sorted(self.answers.get(scoring, ()), key=lambda answer: answer.sites)


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
        self.meanwhile: Callable[[], None] = lambda: None  # what is done while answers are waited for
        self.used: dict[str, int] = {}  # site -> the last round whose update of it was used
        self.used_before = 0  # of whom it is not known: all up to here
        self._quick = QuickSites(config)
        self._joins = self.together and not strategy.pools and transform_of(config.update) is None
        self._given_up: dict[str, tuple[int, str, Pack]] = {}
        self.config_text = json.dumps(config.to_dict())
        self.folder = str(journal.folder.path.resolve())
        self.body = load_body(config).sha256

    @property
    def scores_ride(self) -> bool:
        """Do scores come along with other work? Across machines, where each message starts a process at the site.

        Not where a decision hangs on them before the next round, nor where sites train other weights than are scored.
        """
        strategy = self.strategy
        own = strategy.groups_sites or strategy.candidates or strategy.asynchronous or strategy.pools
        same = not own and set(self.ranks.values()) == {self.config.body.lora_rank}
        return bool(self.config.engine.superlink) and same and not self.config.early_stopping.patience

    def scorings(self, split: str) -> tuple[Scoring, ...]:
        """What is scored on a split: the global model, and the sites' own where they have such."""
        own = self.own_model(split)
        return ((split, "global"), *(((split, own),) if own else ()))

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
        self, sites: Sequence[str], round: int, packed: Packed, shares: Mapping[str, float] = NOTHING,
        aside: Aside | None = None,
    ) -> Iterator[Answer]:  # fmt: skip
        """Answers of the packs that the sites form, in the packs' order, one at a time. `shares`: see `Order`.

        `aside` is scored along with that, by sites that do not train in orders of their own, sent in the same wave.
        """
        packs = packs_to_train(sites, self.roll, self.config, self.rows, packed.kind_of, self.strategy.pools)
        if self._joins:
            packs = self._quick.join(packs, self.roll, packed.kind_of, lambda site: self._bytes_of(site, packed))
        parts = {pack: tuple(shares.get(site, 1.0) for site in pack) for pack in packs} if shares else {}
        beside = aside.scorings if aside else ()
        orders = {
            pack: self._order("train", pack, round, packed, shares=parts.get(pack, ()), beside=beside) for pack in packs
        }
        if not aside:
            return self._ask(orders, round, "train")
        idle = [(site,) for site in self.there() if site not in sites]
        (split, model), *rest = aside.scorings
        orders |= {
            pack: self._order("evaluate", pack, aside.round, packed, split, model, beside=tuple(rest)) for pack in idle
        }
        return self._ask(orders, round, "train", aside, frozenset(idle))

    def _bytes_of(self, site: str, packed: Packed) -> int:
        """About those of a site's update."""
        return packed.of(self.domain_of(site), site).count_bytes() * (1 + len(self.strategy.returns))

    def evaluate(
        self, round: int, packed: Packed, split: str, model: str = "global", aside: Aside | None = None
    ) -> Iterator[Answer]:  # fmt: skip
        """Answers of all sites about one split, as `train`. `model`: see `Order`."""
        packs = packs_to_score(self.there(), self.roll, split, self.together, packed.kind_of)
        beside = aside.scorings if aside else ()
        orders = {pack: self._order("evaluate", pack, round, packed, split, model, beside=beside) for pack in packs}
        return self._ask(orders, round, split, aside)

    def there(self) -> list[str]:
        """Sorted names of the sites that are there now."""
        return sorted(self.roll.nodes)

    def _ask(
        self, orders: dict[Pack, Sent], round: int, phase: str, aside: Aside | None = None,
        idle: Collection[Pack] = (),
    ) -> Iterator[Answer]:  # fmt: skip
        """Answers in order of the orders; of `idle` packs, which only score, what they hold goes to `aside`."""
        self.journal.tell("phase", round=round, phase=phase, sites=sum(map(len, orders)))
        self.journal.audit.going_out(sent.message for sent in orders.values())
        for pack, answer in in_order(self._answers(orders, round, phase, aside, idle), list(orders)):
            if pack not in idle:
                yield answer

    def _order(
        self, kind: str, pack: Pack, round: int, packed: Packed, split: str = "", model: str = "global",
        shares: tuple[float, ...] = (), beside: tuple[Scoring, ...] = (),
    ) -> Sent:  # fmt: skip
        domain = self.domain_of(pack[0])
        pooled = sorted({self.domain_of(site) for site in pack}) if kind == "train" and self.strategy.pools else ()
        cards = tuple(self.roll.domains[one] for one in pooled)
        each = self.each or (self.rows[domain] == 1 and len(pack) > 1 and not pooled)  # joined: see quick_sites
        order = Order(
            pack, round, self.roll.domains[domain], self.config_text, split, self.rows[domain], each,
            work_of(pack, self.roll, self.config), self.folder, model, packed.kind_of(pack[0])[1], cards, shares,
            beside=beside, used=tuple(self.used.get(site, self.used_before) for site in pack), body=self.body,
        )  # fmt: skip
        return Sent(order, write_order(kind, order, packed.of(domain, pack[0]), self.roll.nodes[pack[0]]))

    def _answers(
        self, orders: dict[Pack, Sent], round: int, phase: str, aside: Aside | None, idle: Collection[Pack]
    ) -> Iterator[tuple[Pack, Answer]]:  # fmt: skip
        """Answers as they come, each with its rows and events written."""
        self._tell_late()
        timeout = self.config.engine.timeout_of("train" if phase == "train" else "evaluate")
        given_up: dict[str, Pack] = {}
        pause = REMOTE_POLL_SECONDS if self.config.engine.superlink else POLL_SECONDS
        messages = {pack: sent.message for pack, sent in orders.items()}
        for pack, reply in exchange(self.grid, messages, timeout, self.meanwhile, given_up, pause):
            answer = self._read(orders[pack], reply, timeout)
            self.journal.audit.came_in(messages[pack], reply, answer.problem)
            if pack in idle:
                answer = replace(answer, beside={aside.scorings[0]: answer, **answer.beside})
            elif phase != "train":
                self.journal.sent(round, phase, pack, self.domain_of(pack[0]), answer.arrays, answer.num_bytes)
            if aside:
                aside.take(pack, answer)
            seconds = answer.metrics.get("seconds", [math.nan] * len(pack))
            if phase == "train":
                self._quick.learn(pack, seconds)
            fields = {"round": round, "phase": phase, "domain": self.domain_of(pack[0])}
            self.journal.tell_many(
                "site-finished", [fields | {"site": site, "seconds": s} for site, s in zip(pack, seconds, strict=True)]
            )
            yield pack, replace(answer, sites=pack, each=orders[pack].order.each)
        self._given_up |= {message: (round, phase, pack) for message, pack in given_up.items()}

    def _tell_late(self) -> None:
        """Answers to what was given up are thrown away, and told."""
        for round, phase, pack in late(self.grid, self._given_up):
            names = " + ".join(pack)
            message = f"round {round}: the answer of site {names} ({phase}) has come too late, and is not used"
            self.journal.audit.late(round, names, phase)
            self.journal.tell("late-reply", round=round, phase=phase, site=names, message=message)

    def _read(self, sent: Sent, reply: Message | None, timeout: float) -> Answer:
        """The answer of a pack to its order, or why there is none."""
        pack = sent.order.sites
        if reply is None:
            return Answer(pack, problem=RunError(f"no answer, and none of another site for {timeout:g} s"))
        answer = read_answer(reply, self._most(sent), sent.order.beside)
        if answer.problem is None and answer.sites != pack:
            sender = " + ".join(answer.sites)
            return Answer(pack, problem=RunError(f'the reply says that it comes from site "{sender}"'))
        return answer

    def _most(self, sent: Sent) -> int:
        """Bytes that the answer to an order may have."""
        order = sent.order
        cards, labels = [self.roll.cards[site] for site in order.sites], len(order.card.labels)
        splits = [split for split, _ in order.beside] + ([order.split] if order.split else [])
        most = sum(most_of_tally(cards, labels, split) for split in splits)
        if not order.split:
            updates = len(order.sites) if order.each else 1
            most += most_of_update(sent.message.content["weights"].count_bytes(), len(self.strategy.returns), updates)
        return most


def _of_domain(weights: Arrays, along: Mapping[str, Arrays], names: Sequence[str]) -> Arrays:
    """What a domain's sites are sent: their tensors, and what the strategy sends along of the same names."""
    more = {what: {name: arrays[name] for name in names if name in arrays} for what, arrays in along.items()}
    return join_more({name: weights[name] for name in names if name in weights}, more)
