"""What a strategy is, and what it is given.

A strategy is a frozen dataclass of its settings with two halves. At the server: `start` and `aggregate`, pure functions
of weights, updates and state. At the site: `passes`, `correct` and `finish`, row operations on K sites at once. It
never sees a message, and its server half knows no torch (the site half uses tensor methods only).

What a file of a strategy has to say is what differs from FedAvg: everything else has its default here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from fedfm.arrays import Arrays, RunningMean, group_of
from fedfm.errors import Problem

if TYPE_CHECKING:
    from fedfm.config import RunConfig

State = dict[str, Any]  # nested: Arrays, plain numbers, texts and lists; what a checkpoint can hold


@dataclass(frozen=True)
class Update:
    """What a site sends: `delta` = trained - received, for the tensors it trained and shares.

    `metrics`: "loss" (mean over its steps), "steps" (optimiser steps), and "start-loss" (on its training data, of what
    it received) where the strategy asks for it. `extra`: what `finish` gave to go up beside the change, by name.

    A simulation may hand over the sites of a pack as one update: their names joined by "+", their mean by examples as
    `delta` (float64), the sum of their examples. A strategy that must see every site's own update says so by `each`.
    """

    site: str
    domain: str
    num_examples: int
    delta: Arrays
    metrics: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Arrays] = field(default_factory=dict)


@dataclass(frozen=True)
class Round:
    """The round that the server half works on.

    number: from 1. seed: the run's. sites: every registered site, asked or not -> its domain. examples: site -> its
    training examples. domain_weights: domain -> `w_d`; 1 where it is not named. holds: domain -> names of the tensors
    that its sites are sent; where none are named, all that are shared and its own.
    """

    number: int = 1
    seed: int = 0
    sites: Mapping[str, str] = field(default_factory=dict)
    examples: Mapping[str, int] = field(default_factory=dict)
    domain_weights: Mapping[str, float] = field(default_factory=dict)
    holds: Mapping[str, Collection[str]] = field(default_factory=dict)

    def is_held(self, name: str, domain: str) -> bool:
        """Do the sites of a domain have the tensor?"""
        return name in self.holds[domain] if domain in self.holds else group_of(name) in ("shared", domain)


class Summary(NamedTuple):
    """A strategy in one row of `fedfm list strategies`, which must fit into 80 columns.

    family: of the README's table. paper: first author, year, arXiv number (31 characters). shared_by: who shares what
    (11). state: "none", "server", "site" or "both". cost: of a site's round, FedAvg being "1x" (4).
    """

    family: str
    paper: str
    shared_by: str
    state: str
    cost: str


class Pass(NamedTuple):
    """One descent of a site's round.

    only, frozen: patterns of tensor names (as `body.*`, `head.*`, `*lora_A`): which train, and which of those do not.
    epochs: 0 takes local.epochs. personal: it trains the site's own model, `kept["personal"]`, not the shared one.
    """

    only: tuple[str, ...] = ("*",)
    frozen: tuple[str, ...] = ()
    epochs: int = 0
    personal: bool = False

    def trains(self, name: str) -> bool:
        """Does it train the tensor? `name` as in the model, without its group."""
        return _matches(name, self.only) and not _matches(name, self.frozen)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


ALL = Pass()


@dataclass
class SiteRows:
    """What a site half sees besides its weights; every tensor `[k, P]`, a row a site.

    received: the weights that came. kept: what the site kept from its last round (zeros at first; "personal" begins as
    `received`), to be changed in place. sent: what the server sent along, by name. step: of this pass, from 0.
    steps: of each row in this pass `[k, 1]`. rate: the learning rate of each column `[P]`. which: the pass.
    """

    received: Any
    kept: dict[str, Any] = field(default_factory=dict)
    sent: dict[str, Any] = field(default_factory=dict)
    step: int = 0
    steps: Any = None
    rate: Any = None
    which: Pass = ALL


def key(default: Any, low: float = 0.0, high: float = math.inf, choices: tuple[str, ...] = ()) -> Any:
    """A setting of a strategy, a key of [strategy]: its default and what it may be."""
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Strategy:
    """One algorithm, both halves. `server_learning_rate`: eta_s; 1 replaces the weights by the rule's result."""

    summary: ClassVar[Summary]
    each: ClassVar[bool] = False  # must `aggregate` see every site's own update (a median), or do means of some do?
    averages: ClassVar[bool] = True  # of one update, or of equal ones, the rule makes that update (at eta_s = 1)
    sets: ClassVar[Mapping[str, Any]] = {}  # keys of the configuration it brings, where the user has not set them
    keeps: ClassVar[tuple[str, ...]] = ()  # rows that a site keeps between its rounds; "personal" is its own model
    sends: ClassVar[tuple[str, ...]] = ()  # entries of the state (Arrays) that go down beside the weights
    returns: ClassVar[tuple[str, ...]] = ()  # rows that `finish` gives to go up beside the change
    starts_with_loss: ClassVar[bool] = False  # a site scores what it received on its training data: "start-loss"
    counts_steps: ClassVar[bool] = False  # does the rule take the steps of a site, which must then be those it was due?
    views: ClassVar[tuple[str, ...]] = ()  # other weights under which `pull` sees the examples: "received", or kept
    candidates: ClassVar[tuple[str, ...]] = ()  # of `sends`: models of which a site begins from the best
    keeps_partial: ClassVar[bool] = False  # is the update of a site that got to a part of its steps used?
    asynchronous: ClassVar[bool] = False  # does a round take those who are done first, on whatever weights they began?
    groups_sites: ClassVar[bool] = False  # do sites use models of `variants`?
    pools: ClassVar[str] = ""  # "domain", "all": a bound that trains on the pooled data of sites, for simulations only
    mixes_ranks: ClassVar[bool] = False  # may the LoRA of sites be of different ranks?
    tunes_after: ClassVar[int] = 0  # epochs that each site tunes the final model for itself, to be scored as its own
    server_learning_rate: float = key(1.0)

    def start(self, weights: Arrays) -> State:
        """The server's state before the first round."""
        return {}

    def more_weights(self, weights: Arrays) -> Arrays:
        """Tensors `merged/...` beside those that train: sent down, added to frozen weights, and never sent up."""
        return {}

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        """New weights and state. `updates` may be read once, one at a time, in order of site name.

        What stands in the new state under "told" (name -> number) becomes columns of the round in rounds.csv.
        """
        raise NotImplementedError

    def passes(self, round: int) -> tuple[Pass, ...]:
        """The descents that a site makes in a round, one after the other."""
        return (ALL,)

    def shares(self, name: str, round: int = 0) -> bool:
        """Do sites send their change of a shared tensor in a round (0: in any)? What no pass trains is not sent."""
        if group_of(name) == "merged":
            return False
        rounds = (round,) if round else (1, 2)  # who changes the passes at all does so from round to round
        inner = name.partition("/")[2]
        return any(p.trains(inner) for number in rounds for p in self.passes(number) if not p.personal)

    def correct(self, theta: Any, grad: Any, received: Any, rows: SiteRows) -> Any:
        """The gradient that the sites in the rows of `theta` follow; all tensors `[k, P]`."""
        return grad

    def pull(self, own: Any, others: Mapping[str, Any]) -> Any:
        """A term of the loss `[N]`, of each example's vector before the head `[N, H]`: own, and under the `views`."""
        raise NotImplementedError

    def finish(self, theta: Any, rows: SiteRows) -> dict[str, Any]:
        """What leaves a site after its shared passes: "delta", and what `returns` names. It updates `rows.kept`.

        All in memory of its own: before anybody looks at it, the next site may have trained in that of `theta`.
        """
        return {"delta": theta - rows.received}

    def variants(self, weights: Arrays, state: State) -> dict[str, Arrays]:
        """Other models than `weights`, by name, where sites are grouped: each trains and uses that of its group."""
        return {}

    def variant_of(self, state: State, site: str) -> str:
        """The name of a site's model among the variants; "" for `weights`."""
        return ""

    def problems(self, config: RunConfig) -> list[Problem]:
        """Why it cannot run with this configuration."""
        return []

    def advice(self, config: RunConfig) -> list[str]:
        """What a user should know of it in this configuration: warnings at the start of a run."""
        return []


def two_level_mean(updates: Iterable[Update], domain_weights: Mapping[str, float]) -> Arrays:
    """Mean delta of each tensor: by examples inside a domain, by `w_d` between domains, over those who sent it.

        mean_t = sum_d w_d * (sum_{k in d} n_k delta_{k,t} / sum_{k in d} n_k) / sum_d w_d

    Both sums run over the sites and domains that sent tensor t. A flat mean by examples would let the domain with most
    data rule the shared tensors. One set of float64 sums for each domain is held, whatever the number of sites.
    """
    return mean_of_domains(domain_means(updates), domain_weights)


def domain_means(updates: Iterable[Update]) -> dict[str, Arrays]:
    """Domain -> mean delta of its sites by examples, in float64; domains in order of name."""
    by_domain: dict[str, RunningMean] = {}
    for update in updates:
        by_domain.setdefault(update.domain, RunningMean()).add(update.delta, update.num_examples)
    return {domain: by_domain[domain].value() for domain in sorted(by_domain)}


def mean_of_domains(means: Mapping[str, Arrays], domain_weights: Mapping[str, float]) -> Arrays:
    """Mean of each tensor over the domains that have it, by `w_d`."""
    if len(means) == 1:
        ((domain, alone),) = means.items()
        return alone if domain_weights.get(domain, 1.0) > 0 else {}
    between = RunningMean()
    for domain in sorted(means):
        between.add(means[domain], domain_weights.get(domain, 1.0))
    return between.value()


def registered_shares(round: Round) -> Callable[[Update, str], float]:
    """A function: the share of an update's site in the mean of a tensor over *all* registered sites that hold it."""
    sizes: dict[str, int] = {}
    for site, domain in round.sites.items():
        sizes[domain] = sizes.get(domain, 0) + round.examples[site]

    def share(update: Update, name: str) -> float:
        holders = [d for d in sizes if round.is_held(name, d)]
        between = sum(round.domain_weights.get(d, 1.0) for d in holders)
        return round.domain_weights.get(update.domain, 1.0) / between * update.num_examples / sizes[update.domain]

    return share


def two_level_shares(updates: Iterable[Update], domain_weights: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Tensor -> site -> its share in `two_level_mean` of that tensor; the shares of a tensor sum to 1."""
    senders: dict[str, list[Update]] = {}
    for update in updates:
        for name in update.delta:
            senders.setdefault(name, []).append(update)
    found: dict[tuple[str, ...], dict[str, float]] = {}
    shares = {}
    for name, own in senders.items():
        who = tuple(update.site for update in own)
        if who not in found:
            found[who] = shares_of(own, domain_weights)
        shares[name] = found[who]
    return shares


def shares_of(updates: Sequence[Update], domain_weights: Mapping[str, float]) -> dict[str, float]:
    """Site -> its share in the two-level mean of `updates`."""
    sizes: dict[str, int] = {}
    for update in updates:
        sizes[update.domain] = sizes.get(update.domain, 0) + update.num_examples
    between = sum(domain_weights.get(domain, 1.0) for domain in sizes)
    return {u.site: domain_weights.get(u.domain, 1.0) / between * u.num_examples / sizes[u.domain] for u in updates}


def mean_of_models(models: Iterable[tuple[str, Arrays]], round: Round, like: Arrays) -> Arrays:
    """Mean of the sites' (site, model), by examples, of every tensor over those who have it; of others as in `like`."""
    mean = RunningMean()
    for site, model in models:
        own = {name: value for name, value in model.items() if round.is_held(name, round.sites.get(site, ""))}
        mean.add(own, round.examples.get(site, 1))
    found = mean.value()
    return {name: found.get(name, value).astype(value.dtype) for name, value in like.items()}
