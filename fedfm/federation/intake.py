"""What comes in while a round trains: answers of packs to usable updates, counted, journalled, one at a time."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.federation.alignment import Alignment
from fedfm.federation.asking import Aside, Packed, Sites
from fedfm.federation.compression import ENCODED, decode
from fedfm.federation.faults import Faults, collude, virtual_seconds
from fedfm.federation.messages import MORE, Answer, join_more, split_more, to_record
from fedfm.federation.screening import reason_not_to_believe, reason_to_leave_out
from fedfm.strategies import Update
from fedfm.strategies.lora import from_rank


@dataclass
class Count:
    """What is counted while the updates of one round stream by. `loss` and `examples` are sums over the used ones."""

    number: int
    started: float
    asked: int = 0
    used: int = 0
    dropped: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    loss: float = 0.0
    examples: int = 0
    used_of: Counter[str] = field(default_factory=Counter)  # domain -> used
    refusal: str = ""  # why the first of the sites left out was left out
    virtual_seconds: float | None = None  # of the round: until the slowest of the sites that answer has answered

    def row(self) -> dict[str, float | int | None]:
        """The round's row of rounds.csv."""
        return {
            "round": self.number, "seconds": round(time.perf_counter() - self.started, 3),
            "bytes_down": self.bytes_down, "bytes_up": self.bytes_up, "sites_asked": self.asked,
            "sites_used": self.used, "sites_dropped": self.dropped,
            "loss": self.loss / self.examples if self.examples else None, "virtual_seconds": self.virtual_seconds,
        }  # fmt: skip


class Intake:
    """The updates of one round. `weights` are those that were sent out, `packed` the records that carried them.

    `aside`: what is scored along with the training.
    """

    def __init__(
        self, sites: Sites, config: RunConfig, weights: Arrays, packed: Packed, count: Count,
        aside: Aside | None = None,
    ):  # fmt: skip
        self.sites, self.config, self.weights = sites, config, weights
        self.packed, self.count, self.aside = packed, count, aside
        self._sizes: dict[tuple[str, int], int] = {}
        self._expectations: dict[tuple[str, int], Arrays] = {}

    def updates(self, asked: list[str], faults: Faults) -> Iterator[Update]:
        """The usable updates of the sites `asked`, in order of packs, as far as the simulated faults let them come."""
        updates = self._arriving(asked, faults)
        if self.config.simulation.attack == "alie":
            updates = collude(updates, self.config)
        return self._watched(updates)

    def _watched(self, updates: Iterator[Update]) -> Iterator[Update]:
        """The same updates; once the last has gone by, how far each points where their mean does."""
        weights = {domain: settings.weight for domain, settings in self.config.domains.items()}
        journal = self.sites.journal
        with Alignment(weights, journal.folder.path) as alignment:
            for update in updates:
                alignment.take(update)
                yield update
            rows = [
                (of.site, of.domain, "train", {"cosine_to_mean": cosine}, of.num_examples)
                for of, cosine in alignment.cosines()
            ]
        journal.scores(self.count.number, "site", rows)

    def _arriving(self, asked: list[str], faults: Faults) -> Iterator[Update]:
        count = self.count
        count.asked = len(asked)
        if not self.sites.strategy.pools:  # whose data have moved, not the weights
            count.bytes_down = sum(self.packed.of(self.sites.domain_of(site), site).count_bytes() for site in asked)
        for site, reason in faults.gone.items():
            self._leave_out({site: reason})
        there = [site for site in asked if site not in faults.gone]
        for answer in self.sites.train(there, count.number, self.packed, faults.shares, self.aside):
            domain = self.sites.domain_of(answer.sites[0])
            reasons = dict.fromkeys(answer.sites, str(answer.problem)) if answer.problem else dict(answer.left_out)
            sent = [site for site in answer.sites if site not in reasons]
            count.bytes_up += self._bytes_up(answer, sent, domain)
            if not answer.each and not self.sites.strategy.pools:
                self._journal_sent(answer.sites, domain, answer.arrays, answer.num_bytes)
            updates, refused = self._screened(answer, sent, domain, faults.shares)
            self._leave_out(reasons | refused)
            self._journal(answer, [site for site in sent if site not in refused])
            yield from updates

    def _bytes_up(self, answer: Answer, sent: list[str], domain: str) -> int:
        """What the sites of an answer send; a pack's mean, or its stack, stands for many. Of pooled data nothing."""
        if self.sites.strategy.pools:
            return 0
        if len(answer.sites) == 1 and not answer.each:
            return answer.num_bytes
        size = self._bytes_of_update(domain, answer.sites[0])
        compressed = dict(zip(answer.sites, answer.metrics.get("update-bytes", ()), strict=False))
        told = [compressed.get(site, size) for site in sent]
        return sum(int(bytes_up) if 0 <= bytes_up < math.inf else size for bytes_up in told)

    def _bytes_of_update(self, domain: str, site: str) -> int:
        """What a site of the domain sends in this round, were it alone."""
        kind = domain, self.sites.ranks[site]
        if kind not in self._sizes:
            arrays = self._expected(site)
            more = dict.fromkeys(self.sites.strategy.returns, arrays)
            self._sizes[kind] = to_record(join_more(arrays, more)).count_bytes()
        return self._sizes[kind]

    def _screened(
        self, answer: Answer, sent: list[str], domain: str, shares: Mapping[str, float]
    ) -> tuple[list[Update], dict[str, str]]:
        """What of an answer can be used, and why the rest cannot. A mean of several sites is used whole or not."""
        told = {site: numbers_of(answer, site) for site in sent}
        try:
            answer = self._decoded(answer, sent)
        except (KeyError, IndexError, ValueError, TypeError) as error:
            return [], dict.fromkeys(sent, f"its compressed update cannot be read: {error}")
        is_mean = not answer.each and len(answer.sites) > 1  # also of one, where the others of its pack are left out
        try:
            parts = _parts(answer.arrays, sent, answer.each)
        except (IndexError, ValueError, TypeError) as error:
            return [], dict.fromkeys(sent, f"its tensors are not one for each site: {error}")
        if answer.each:  # of each site what it would send alone
            held = {names[0]: arrays for names, arrays in parts}
            for site in answer.sites:
                size = self._bytes_of_update(domain, site) if site in held else 0
                self._journal_sent((site,), domain, held.get(site, {}), size)
        updates, refused = [], {}
        for names, arrays in parts:
            delta, more = split_more(arrays)
            reasons = [self._reason_in_arrays(names[0], delta, more, is_mean)]  # of a mean once, not once for each site
            reasons += [self._reason_in_numbers(name, told[name], shares.get(name, 1.0)) for name in names]
            if first := next(filter(None, reasons), ""):
                refused |= dict.fromkeys(names, first)
                continue
            examples = [int(told[name]["num-examples"]) for name in names]
            metrics = told[names[0]]
            if len(names) > 1:
                losses = [told[name]["loss"] for name in names]
                metrics = {"loss": float(np.average(losses, weights=examples))}
            delta = from_rank(delta, self.weights, self.sites.ranks[names[0]])
            updates.append(Update("+".join(names), domain, sum(examples), delta, metrics, more))
        return updates, refused

    def _journal_sent(self, sites: Sequence[str], domain: str, arrays: Arrays, num_bytes: int) -> None:
        self.sites.journal.sent(self.count.number, "train", sites, domain, arrays, num_bytes)

    def _decoded(self, answer: Answer, sent: list[str]) -> Answer:
        if not any(name.startswith(f"{ENCODED}{MORE}") for name in answer.arrays):
            return answer
        own, more = split_more(answer.arrays)
        expected = self._expected(sent[0])
        known = {"", *expected}  # some encodings add #what to the name of a tensor, some have one for all
        if foreign := [*own, *(name for name in more[ENCODED] if name.partition("#")[0] not in known)]:
            raise ValueError(f"it also holds {foreign[0]}")
        own |= decode(self.config, more.pop(ENCODED), expected)
        return replace(answer, arrays=join_more(own, more))

    def _expected(self, site: str) -> Arrays:
        """What an update of the site must look like; of sites alike it is worked out once in a round."""
        kind = self.sites.domain_of(site), self.sites.ranks[site]
        if kind not in self._expectations:
            self._expectations[kind] = self.sites.expected(self.weights, site, self.count.number)
        return self._expectations[kind]

    def _reason_in_arrays(self, site: str, delta: Arrays, more: Mapping[str, Arrays], is_mean: bool) -> str:
        expected = self._expected(site)
        dtype = np.dtype(np.float64) if is_mean else None
        reason = reason_to_leave_out(delta, expected, 1, 0.0, self.config.screening.max_norm, dtype)
        for what in self.sites.strategy.returns if not reason else ():
            beside = reason_to_leave_out(more.get(what, {}), expected, 1, 0.0, 0.0, dtype)
            reason = f"{what}: {beside}" if beside else ""
        if not reason and (foreign := sorted(more.keys() - set(self.sites.strategy.returns))):
            reason = f'it also holds tensors of "{foreign[0]}", which this strategy does not ask for'
        return reason

    def _reason_in_numbers(self, site: str, told: Mapping[str, float], share: float) -> str:
        examples, loss = told.get("num-examples", math.nan), told.get("loss", math.nan)
        if reason := reason_to_leave_out({}, {}, examples, loss, 0.0):
            return reason
        card = self.sites.roll.cards[site]
        held = card.num_examples("train")
        if examples > held:
            return f"it says that it was trained on {examples:g} examples, but the site holds {held}"
        strategy, due = self.sites.strategy, 0
        if strategy.counts_steps:
            due = self.config.local_for(card.domain).steps(int(examples), share)
        return reason_not_to_believe(told, strategy, due)

    def _hint(self, reason: str, domain: str) -> str:
        if "not finite" not in reason:
            return reason
        rate = self.config.local_for(domain).learning_rate
        return f"{reason}; often the learning rate is too high (local.learning-rate = {rate:g} for {domain})"

    def _leave_out(self, reasons: Mapping[str, str]) -> None:
        self.count.dropped += len(reasons)
        for site, reason in reasons.items():
            domain = self.sites.domain_of(site)
            about = {"round": self.count.number, "site": site, "domain": domain, "reason": self._hint(reason, domain)}
            self.count.refusal = self.count.refusal or f"{site} was left out: {about['reason']}"
            self.sites.journal.audit.left_out(**about)
            self.sites.journal.tell("update-left-out", **about)

    def _journal(self, answer: Answer, used: list[str]) -> None:
        count, journal = self.count, self.sites.journal
        rows = []
        for site in used:
            told, domain = numbers_of(answer, site), self.sites.domain_of(site)
            examples, loss = int(told["num-examples"]), told["loss"]
            journal.warn_truncated(site, domain, told.get("truncated", 0.0), self.config)
            names = {"loss": "loss", "steps": "steps", "update-norm": "update_norm"}
            values = {column: told[name] for name, column in names.items() if name in told}
            rows.append((site, domain, "train", values, examples))
            self.sites.used[site] = count.number
            count.used += 1
            count.used_of[domain] += 1
            if self.config.simulation.has_clock:
                down = self.packed.of(domain, site).count_bytes()
                up = self._bytes_of_update(domain, site)
                took = virtual_seconds(site, self.config, told.get("steps", 0.0), down, up)
                count.virtual_seconds = max(count.virtual_seconds or 0.0, took)
            count.loss += examples * loss
            count.examples += examples
        journal.scores(count.number, "site", rows)


def numbers_of(answer: Answer, site: str) -> dict[str, float]:
    """What an answer tells of one of its sites."""
    place = answer.sites.index(site)
    return {name: values[place] for name, values in answer.metrics.items()}


def _parts(arrays: Arrays, sent: list[str], each: bool) -> list[tuple[list[str], Arrays]]:
    """(sites, update) pairs: each site's own, or the one that stands for all of them."""
    if not each:
        return [(sent, arrays)] if sent else []
    if wrong := [name for name, stack in arrays.items() if len(stack) != len(sent)]:
        raise ValueError(f"{wrong[0]} has {len(arrays[wrong[0]])} rows for {len(sent)} sites")
    return [([site], {name: stack[row] for name, stack in arrays.items()}) for row, site in enumerate(sent)]
