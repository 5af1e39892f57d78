"""The work of a pack of sites: train them as rows of one matrix, score a model on their data.

A node holds one site (deployment: `--node-config 'site="st-mary" domain="medical"'`, packs of one) or several
(simulation). What a site computes depends on its name, its data and its orders, never on the node that computes it;
which sites share a pack changes no more than the last digits of a sum.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import FedfmError
from fedfm.federation.messages import Answer, Order
from fedfm.federation.reduction import Reduction
from fedfm.federation.site_data import parse_config, site_features
from fedfm.federation.site_store import read_private, save_private
from fedfm.profiling import phase


def train(order: Order, received: Mapping[str, np.ndarray]) -> Answer:
    """Local training of every site of the pack: their changes, and what is told about each site."""
    from fedfm.strategies import make_strategy
    from fedfm.training.fit import SiteWork, fit

    config, bench = parse_config(order.config), _workbench(order)
    told = _Told(order)
    works = []
    for site in order.sites:
        features = told.read(site, lambda site=site: _features(order, site, "train", bench))
        if features is not None:
            works.append(SiteWork(site, features, config.seed, order.round))
    correct, local = make_strategy(config.strategy).correct, config.local_for(order.card.domain)
    shared = {name: full for name, full in bench.grouped.items() if not full.startswith("private/")}
    reduction = Reduction(order, bench.matrix, shared, config.screening.max_norm)
    for first in range(0, len(works), bench.matrix.rows):
        part = works[first : first + bench.matrix.rows]
        start = _load(order, received, [work.site for work in part], bench)
        losses = fit(bench.matrix, part, local, correct)
        for work, loss in zip(part, losses, strict=True):
            told.say(work.site, loss=loss, truncated=work.features.truncated, **{"num-examples": len(work.features)})
        rows = [(work.site, len(work.features), loss) for work, loss in zip(part, losses, strict=True)]
        _keep_private(order, reduction.add(rows, start), bench)
    told.left_out |= reduction.left_out
    return told.answer(reduction.arrays())


def evaluate(order: Order, received: Mapping[str, np.ndarray]) -> Answer:
    """The tallies of the received model on one split of every site, with what is private there."""
    from fedfm.training.evaluation import evaluate as tallies_of
    from fedfm.training.metrics import stack

    bench, told = _workbench(order), _Told(order)
    splits = {}
    for site in order.sites:
        features = told.read(site, lambda site=site: _features(order, site, order.split, bench))
        if features is not None:
            splits[site] = features
            told.say(site, **{"num-examples": len(features)})
    # one model for all, or one for each where something of it is private
    groups = [[site] for site in splits] if _private_names(order, bench) else [list(splits)] if splits else []
    tallies = []
    for sites in groups:
        _load(order, received, sites[:1], bench)
        tallies += tallies_of(bench.model, [splits[site] for site in sites])
    return told.answer(stack(tallies) if tallies else {})


@dataclass
class _Told:
    """What the answer says of each site of the order."""

    order: Order
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def read(self, site: str, make):
        """What `make` makes of the site's data; None, and a reason, where they are refused."""
        try:
            return make()
        except FedfmError as error:
            self.left_out[site] = str(error)
            return None

    def say(self, site: str, **values: float) -> None:
        self.metrics.setdefault(site, {}).update(values)

    def answer(self, arrays: Arrays) -> Answer:
        names = sorted({name for values in self.metrics.values() for name in values})
        rows = [self.metrics.get(site, {}) for site in self.order.sites]
        columns = {name: [row.get(name, np.nan) for row in rows] for name in names}
        return Answer(self.order.sites, arrays, columns, self.left_out)


class _Workbench:
    """The model of a domain in this process, with its client matrix."""

    def __init__(self, config: RunConfig, card: DomainCard, rows: int):
        from fedfm.models.body import load_body
        from fedfm.models.site_model import build_model, group_names
        from fedfm.training.matrix import ClientMatrix

        self.model = build_model(config, card, pick_device(config))
        self.matrix = ClientMatrix(self.model, rows)
        self.body = load_body(config)
        self.grouped = group_names(self.matrix.columns, config.sharing, card.domain)


def pick_device(config: RunConfig) -> str:
    """The device that `engine.device` means on this machine."""
    import torch

    if config.engine.device != "auto":
        return config.engine.device
    return "cuda" if torch.cuda.is_available() else "cpu"


def _workbench(order: Order) -> _Workbench:
    import torch

    # The default, all cores, is slow where cores are shared. Set for every piece of work: sums depend on it, and
    # another run in this process may have set another number.
    torch.set_num_threads(parse_config(order.config).engine.threads)
    return _cached_workbench(order.config, order.card, order.rows)


@lru_cache(maxsize=8)
def _cached_workbench(config: str, card: DomainCard, rows: int) -> _Workbench:
    return _Workbench(parse_config(config), card, rows)


def _features(order: Order, site: str, split: str, bench: _Workbench):
    return site_features(order, site, split, bench.model, bench.body)


def _private_names(order: Order, bench: _Workbench) -> list[str]:
    return [name for name, full in bench.grouped.items() if full.startswith("private/")]


def _store(order: Order) -> Path:
    return Path(order.folder) / "checkpoint" / "sites"


@phase("move")
def _load(order: Order, received: Mapping[str, np.ndarray], sites: Sequence[str], bench: _Workbench):
    """Put what was received, and what each site keeps to itself, into the first rows; returns a copy of them [k, P]."""
    from fedfm.models.site_model import start_weights

    matrix, private = bench.matrix, _private_names(order, bench)
    matrix.load(0, {name: received[full] for name, full in bench.grouped.items() if name not in private})
    matrix.spread(0, len(sites))
    last = order.round if order.split else order.round - 1
    for row, site in enumerate(sites if private else ()):
        kept = read_private(_store(order), site, last) or start_weights(bench.model, parse_config(order.config).seed)
        matrix.load(row, {name: kept[name] for name in private})
    return matrix.theta[: len(sites)].clone()


def _keep_private(order: Order, rows: Mapping[str, int], bench: _Workbench) -> None:
    """Save what is private of the sites whose updates are used; a site must not keep half of a round left out."""
    private = _private_names(order, bench)
    for site, row in rows.items() if private else ():
        trained = bench.matrix.read(row)
        save_private(_store(order), site, order.round, {name: trained[name] for name in private})
