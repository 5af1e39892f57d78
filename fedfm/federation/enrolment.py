"""The start of a run: which node holds which site, what the sites hold, and the first weights."""

from __future__ import annotations

import fnmatch
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.serverapp import Grid

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError, DataError, EngineError, FedfmError, Problem
from fedfm.federation.auditing import UNRECORDED, CoordinatorRecord
from fedfm.federation.exchange import exchange
from fedfm.federation.messages import SiteCard, read_cards, write_query
from fedfm.profiling import phase
from fedfm.strategies import make_strategy

WAIT_SECONDS = 120.0


@dataclass
class Roll:
    """The sites of a run: site -> node and card; domain -> card with the labels that its sites agreed on."""

    nodes: dict[str, int] = field(default_factory=dict)
    cards: dict[str, SiteCard] = field(default_factory=dict)
    domains: dict[str, DomainCard] = field(default_factory=dict)

    def site_domains(self) -> dict[str, str]:
        """Site -> domain, in order of site name."""
        return {site: self.cards[site].domain for site in sorted(self.cards)}


@phase("load")
def enrol(
    grid: Grid, config: RunConfig, timeout: float, wait: float = WAIT_SECONDS, audit: CoordinatorRecord = UNRECORDED
) -> Roll:
    """Ask every node for its sites until all sites of the configuration are there.

    Raises a site's own error where its data are refused, EngineError when sites are missing or claimed twice.
    """
    roll, asked, problems = Roll(), set(), []
    expected, deadline = config.sites(), time.monotonic() + wait
    while True:
        fresh = {str(node): node for node in grid.get_node_ids() if node not in asked}
        asked |= set(fresh.values())
        text = json.dumps(config.to_dict())
        orders = {key: write_query(text, node) for key, node in fresh.items()}
        audit.going_out(orders.values())
        for key, reply in exchange(grid, orders, timeout):
            problem, cards = None, []
            try:
                cards = [] if reply is None else read_cards(reply, len(expected))
            except FedfmError as error:
                problem = error
                problems.append(error)
            audit.came_in(orders[key], reply, problem)
            for card in cards:
                _enter(roll, card, fresh[key], expected)
        missing = [site for site in expected if site not in roll.nodes]
        if problems:
            raise type(problems[0])(_once(problem for error in problems for problem in error.problems))
        if not missing:
            break
        if time.monotonic() > deadline:
            mend = "start these sites, or take them out of the configuration"
            raise EngineError(f"no node holds {', '.join(missing)} after {wait:.0f} s", mend=mend)
        time.sleep(0.2)
    roll.domains = {domain: agree(domain, roll) for domain in config.domains}
    _check_watched(config, roll)
    return roll


def _check_watched(config: RunConfig, roll: Roll) -> None:
    """Early stopping cannot watch a domain of which no site has validation examples. Raises ConfigError."""
    metric = config.early_stopping.metric
    if not config.early_stopping.patience or metric not in roll.domains:
        return
    counts = [card.label_counts["validation"] for card in roll.cards.values() if card.domain == metric]
    if not any(sum(count.values()) for count in counts):
        mend = "watch another metric, or give the domain validation examples"
        raise ConfigError(f"domain {metric} has no validation examples", where="early-stopping.metric", mend=mend)


def refuse_changed_data(roll: Roll, before: Mapping[str, Mapping[str, Any]]) -> None:
    """A run goes on with the data that it began with. `before`: the sites of run.json. Raises DataError."""
    changed = [
        Problem(f"the data of site {site} have changed since the run began (sha256 {card.sha256[:12]}...)", card.source)
        for site, card in sorted(roll.cards.items())
        if site in before and before[site]["sha256"] != card.sha256
    ]
    if changed:
        raise DataError([*changed[:-1], replace(changed[-1], mend="bring the old data back, or start a new run")])


def _enter(roll: Roll, card: SiteCard, node: int, expected: Mapping[str, str]) -> None:
    if expected.get(card.site) != card.domain:
        what = f'a node says that it is site "{card.site}" of domain {card.domain}; the configuration has none such'
        raise EngineError(what, mend=f"its sites are {', '.join(expected)}")
    if roll.nodes.get(card.site, node) != node:
        raise EngineError(f'two nodes say that they are site "{card.site}"', mend="stop one of them")
    roll.nodes[card.site], roll.cards[card.site] = node, card


def _once(problems) -> list[Problem]:
    return list(dict.fromkeys(problems))


def agree(domain: str, roll: Roll) -> DomainCard:
    """One list of labels and one image shape for the sites of a domain. Raises DataError when images differ."""
    cards = [card for _, card in sorted(roll.cards.items()) if card.domain == domain]
    first = cards[0]
    shapes = {card.image_shape: card.site for card in reversed(cards)}
    if len(shapes) > 1:
        listed = ", ".join(f"{site}: {shape}" for shape, site in sorted(shapes.items(), key=lambda item: item[1]))
        mend = f"set domains.{domain}.image-size to one size; grey and colour cannot mix"
        what = f"the sites' images differ in (channels, height, width): {listed}"
        raise DataError(what, where=f"domain {domain}", mend=mend)
    if any(card.labels != first.labels for card in cards):
        known = {label for card in cards for label in card.labels}
        return DomainCard(domain, first.task, tuple(sorted(known, key=_tag_order)), first.image_shape)
    return DomainCard(domain, first.task, first.labels, first.image_shape)


def _tag_order(label: str) -> tuple[bool, str, str]:
    """ "O" first, then by type, B- before I-; plain class names by name."""
    prefix, dash, kind = label.partition("-")
    return (label != "O", kind if dash and prefix in "BI" else label, prefix)


@phase("load")
def first_weights(config: RunConfig, roll: Roll) -> tuple[Arrays, dict[str, list[str]]]:
    """The weights of round 0 by grouped name, and for each domain the names that its sites are sent.

    What no round trains stays as every site knows it from the start, and is in no message.
    """
    from fedfm.models.site_model import build_model, group_names, start_weights

    strategy = make_strategy(config.strategy)
    weights: Arrays = {}
    names: dict[str, list[str]] = {}
    unlike: dict[str, None] = {}
    for domain, card in roll.domains.items():
        values = start_weights(build_model(config, card), config.seed)
        grouped = group_names(values, config.sharing, domain)
        sent = {full: values[name] for name, full in grouped.items() if not full.startswith("private/")}
        unlike |= dict.fromkeys(n for n in sent if n in weights and weights[n].shape != sent[n].shape)
        weights |= sent
        names[domain] = sorted(full for full in sent if strategy.shares(full))
    merged = strategy.more_weights(weights)
    weights |= merged
    names = {domain: sorted([*own, *merged]) for domain, own in names.items()}
    if unlike:
        what = f"tensors that the domains share have other shapes in other domains: {', '.join(unlike)}"
        raise ConfigError(what, where="sharing", mend='move them with a pattern = "domain", or "private"')
    return dict(sorted(weights.items())), names


@phase("load")
def idle_patterns(config: RunConfig, roll: Roll) -> list[str]:
    """The patterns of [sharing] that match no tensor of any domain, and so do nothing."""
    from fedfm.models.site_model import build_model

    names = {
        f"{name}.{attribute}"
        for card in roll.domains.values()
        for name, module in build_model(config, card).rows().items()
        for attribute in module.shapes
    }
    return [pattern for pattern in config.sharing if not fnmatch.filter(names, pattern)]


def save_cards(folder: Path, roll: Roll) -> None:
    """`domains.json` beside the final weights: what is needed to use the model without its sites."""
    cards = {domain: asdict(card) for domain, card in roll.domains.items()}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "domains.json").write_text(json.dumps(cards, indent=2), encoding="utf-8")
