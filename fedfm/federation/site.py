"""The work of a pack of sites: train them as rows of one matrix, score a model on their data.

A node holds one site (deployment: `--node-config 'site="st-mary" domain="medical"'`, packs of one) or several
(simulation). What a site computes depends on its name, its data and its orders, never on the node that computes it;
which sites share a pack changes no more than the last digits of a sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fedfm.arrays import Arrays
from fedfm.errors import reason_of
from fedfm.federation.compression import ENCODED, compress, transform_of
from fedfm.federation.faults import attacked, attackers, flip_labels
from fedfm.federation.messages import Answer, Order, Scoring, join_more, to_record
from fedfm.federation.reduction import Reduction
from fedfm.federation.site_data import parse_config, site_features
from fedfm.federation.workbench import ERROR, Workbench, workbench
from fedfm.results.predictions import save_items

if TYPE_CHECKING:
    from torch import Tensor

    from fedfm.config import LocalConfig
    from fedfm.models.features import Features
    from fedfm.training.evaluation import Scored
    from fedfm.training.fit import SiteWork
    from fedfm.training.local_round import RoundOfSites


def train(order: Order, received: Mapping[str, np.ndarray]) -> Answer:
    """Local training of every site of the pack: their changes, and what is told about each site."""
    from fedfm.training.heap import after_pack

    config, bench, told = parse_config(order.config), workbench(order), Told(order)
    reduction = Reduction(order, bench.matrix, bench.sent_up(order.round), config.screening.max_norm)
    local = config.local_for(order.card.domain)
    works = works_of(order, bench, told)
    for work in works:
        told.read(work.site, lambda work=work: work.plan_ahead(local))
    works = [work for work in works if work.site not in told.left_out]
    parts = [works[first : first + bench.matrix.rows] for first in range(0, len(works), bench.matrix.rows)]
    waiting: list[Trained] = []
    for part in parts:
        with told.sparing(part, works):
            waiting.append(_train_rows(order, received, part, local, bench))
        if not order.each:  # a mean holds one change, however many sites the pack has
            _take_in(order, waiting, works, bench, told, reduction)
    _take_in(order, waiting, works, bench, told, reduction)
    told.left_out |= reduction.left_out
    after_pack()
    return told.answer(reduction.arrays())


class Trained(NamedTuple):
    """Sites that have trained. `theta`: their rows `[k, P]`, where parts of them never leave a site."""

    works: Sequence[SiteWork]
    done: RoundOfSites
    theta: Tensor | None


def _train_rows(
    order: Order, received: Mapping[str, np.ndarray], works: Sequence[SiteWork], local: LocalConfig, bench: Workbench
) -> Trained:
    """Train as many sites as the matrix has rows."""
    from fedfm.training.local_round import train_round

    sites = [work.site for work in works]
    bench.load(order, received, sites)
    kept, sent = bench.kept(order, sites), bench.sent_along(received)
    done = train_round(bench.matrix, works, local, bench.strategy, kept, sent, private=bench.private_columns)
    return Trained(works, done, bench.matrix.theta[: len(works)].clone() if bench.private else None)


def _take_in(
    order: Order, waiting: list[Trained], works: Sequence[SiteWork], bench: Workbench, told: Told, reduction: Reduction
) -> None:
    """Take all that wait into the answer, side by side: right after a training each takes several times as long."""
    while waiting:
        trained = waiting.pop(0)
        with told.sparing(trained.works, works):
            _take(order, trained, bench, told, reduction)


def _take(order: Order, trained: Trained, bench: Workbench, told: Told, reduction: Reduction) -> None:
    """Take the changes of sites into the answer, and what is told of them; save what they keep."""
    part, done, theta = trained
    sites = [work.site for work in part]
    _attack(order, sites, done.leaves["delta"])
    norms = bench.norms(done.leaves["delta"], order.round)
    for work, metrics, norm in zip(part, done.metrics, norms, strict=True):
        told.say(work.site, truncated=work.features.truncated, **metrics, **{"num-examples": len(work.features)})
        told.say(work.site, **{"update-norm": norm})
    sent_as = _compress(order, bench, sites, done, told)
    rows = [(w.site, len(w.features), m["loss"], norm) for w, m, norm in zip(part, done.metrics, norms, strict=True)]
    bench.keep(order, reduction.add(rows, done.leaves, sent_as), done.kept, theta)


def evaluate(order: Order, received: Mapping[str, np.ndarray]) -> Answer:
    """The tallies of the received model on one split of every site: as it came, or as each site has made it its own."""
    from fedfm.training.evaluation import evaluate as evaluate_splits
    from fedfm.training.metrics import stack

    bench, told = workbench(order), Told(order)
    splits = {}
    for site in order.sites:
        features = told.read(site, lambda site=site: site_features(order, site, order.split, bench.model, bench.body))
        if features is not None:
            splits[site] = features
            told.say(site, **{"num-examples": len(features)})
    # one model for all, or one for each
    groups = [list(splits)] if order.model == "global" and splits else [[site] for site in splits]
    tallies = []
    for sites in groups:
        bench.load(order, received, sites[:1])
        if order.model != "global":
            told.read(sites[0], lambda site=sites[0]: _make_own(order, bench, site, told))
            if sites[0] in told.left_out:  # the data that it was to be tuned on are refused, or its tuning failed
                continue
        scored = evaluate_splits(bench.model, [splits[site] for site in sites])
        tallies += [one.tally for one in scored]
        _keep_items(order, sites, scored)
    return told.answer(stack(tallies) if tallies else {})


def score_beside(order: Order, received: Mapping[str, np.ndarray]) -> dict[Scoring, Answer]:
    """What an order wants scored beside its work: before a training the weights of the round before it."""
    number = order.round if order.split else order.round - 1
    found = {}
    for split, model in order.beside:
        asked = replace(order, round=number, split=split, model=model, beside=(), shares=())
        try:
            found[split, model] = evaluate(asked, received)
        except Exception as error:  # whoever cannot be scored can still train
            found[split, model] = Answer(order.sites, left_out=dict.fromkeys(order.sites, reason_of(error)))
    return found


def _keep_items(order: Order, sites: Sequence[str], scored: Sequence[Scored]) -> None:
    """In a simulation the test outcomes of every example stay in the run's folder; they are in no message."""
    is_simulated = not order.source and parse_config(order.config).engine.name != "flower"
    if order.split == "test" and is_simulated and Path(order.folder).is_dir():
        for site, one in zip(sites, scored, strict=True):
            save_items(Path(order.folder), order.model, order.card.domain, site, one.items())


def _make_own(order: Order, bench: Workbench, site: str, told: Told) -> None:
    """Put the site's own model into the first row: what it keeps, or what it makes of the received one by tuning."""
    from fedfm.strategies import Pass, Strategy
    from fedfm.training.local_round import train_round

    if "personal" in bench.strategy.keeps:
        bench.matrix.theta[:1] = bench.kept(order, [site])["personal"]
    if order.model == "tuned" and (works := works_of(order, bench, told, (site,))):
        tuning = Pass(epochs=bench.strategy.tunes_after)
        local = parse_config(order.config).local_for(order.card.domain)
        train_round(bench.matrix, works, local.model_copy(update={"epochs": tuning.epochs}), Strategy())


def works_of(order: Order, bench: Workbench, told: Told, sites: Sequence[str] = ()) -> list[SiteWork]:
    """The sites' training splits, with the draws of the round; those whose data are refused are left out."""
    from fedfm.training.fit import SiteWork

    seed, works = parse_config(order.config).seed, []
    shares = dict(zip(order.sites, order.shares, strict=False))
    for site in sites or order.sites:
        features = told.read(site, lambda site=site: site_features(order, site, "train", bench.model, bench.body))
        if features is not None:
            features = _as_attacked(order, site, features)
            works.append(SiteWork(site, features, seed, order.round, shares.get(site, 1.0)))
    return works


def _attack(order: Order, sites: Sequence[str], change: Tensor) -> None:
    """In a simulation: what the attackers among the sites send, in place of their changes `[k, P]`."""
    config = parse_config(order.config)
    for row, site in enumerate(sites):
        if site in attackers(config):
            sent = attacked(change[row].cpu().numpy(), config, order.round, site)
            change[row] = change.new_tensor(sent)


def _compress(order: Order, bench: Workbench, sites: Sequence[str], done: RoundOfSites, told: Told) -> list[Arrays]:
    """What [update] makes of the sites' changes; nothing where it does nothing."""
    config = parse_config(order.config)
    if transform_of(config.update) is None:
        return []
    names = bench.sent_up(order.round)
    change, error = done.leaves["delta"], done.kept.get(ERROR)
    sent = compress(config, order.round, sites, bench.matrix, names, change, error, is_real=bool(order.source))
    for row, site in enumerate(sites):
        beside = {}
        for what in bench.strategy.returns:
            values = bench.matrix.unflatten(done.leaves[what][row].cpu().numpy())
            beside[what] = {full: values[name] for name, full in names.items()}
        size = to_record(join_more({}, {ENCODED: sent[row], **beside})).count_bytes()
        told.say(site, **{"update-bytes": float(size)})
    return sent


def _as_attacked(order: Order, site: str, features: Features) -> Features:
    """In a simulation: what a label-flip attacker trains on."""
    config = parse_config(order.config)
    if config.simulation.attack != "label-flip" or site not in attackers(config):
        return features
    from fedfm.models.features import IGNORED

    labels, classes = features.labels, len(order.card.labels)
    if isinstance(labels, np.ndarray):
        return replace(features, labels=flip_labels(labels, classes, IGNORED))
    return replace(features, labels=replace(labels, values=flip_labels(labels.values, classes, IGNORED)))


@dataclass
class Told:
    """What the answer says of each site of the order."""

    order: Order
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def read(self, site: str, make):
        """What `make` makes of the site's data; None, and a reason, where they are refused, or anything fails: the
        other sites of the order can do without."""
        try:
            return make()
        except OSError:  # the disk's fault, and so that of all
            raise
        except Exception as error:
            self.left_out[site] = reason_of(error)
            return None

    @contextmanager
    def sparing(self, part: Sequence[SiteWork], works: Sequence[SiteWork]) -> Iterator[None]:
        """Whatever goes wrong at a `part` of the order's sites must not end the round of its neighbours."""
        try:
            yield
        except Exception as error:
            if len(part) == len(works) or isinstance(error, OSError):
                raise
            self.left_out |= {work.site: reason_of(error) for work in part}

    def say(self, site: str, **values: float) -> None:
        self.metrics.setdefault(site, {}).update(values)

    def answer(self, arrays: Arrays) -> Answer:
        names = sorted({name for values in self.metrics.values() for name in values})
        rows = [self.metrics.get(site, {}) for site in self.order.sites]
        columns = {name: [row.get(name, np.nan) for row in rows] for name in names}
        return Answer(self.order.sites, arrays, columns, self.left_out)
