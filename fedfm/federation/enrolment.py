"""The start of a run: which node holds which site, what the sites hold, and the first weights."""

from __future__ import annotations

import fnmatch
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.domains.card import DomainCard
from fedfm.errors import ConfigError, DataError, EngineError, FedfmError, Problem
from fedfm.federation.common_ground import agree, check_together
from fedfm.federation.door import Door, Refusal, Roll, changed_data
from fedfm.federation.exchange import POLL_SECONDS, REMOTE_POLL_SECONDS
from fedfm.profiling import phase
from fedfm.strategies import make_strategy


@phase("load")
def enrol(door: Door, wait: float, say: Callable[[str], None] = lambda sentence: None) -> Roll:
    """Ask every node for its sites until all sites of the configuration are there.

    Once `wait` seconds are over, a run begins without the missing ones where every domain has its minimum-sites.
    `say` hears why a node or a site is left out.

    Raises a site's own error where its data are refused and it cannot be done without, EngineError when sites are
    missing or claimed twice.
    """
    config, roll, deadline = door.config, door.roll, time.monotonic() + wait
    refused: dict[str, FedfmError] = {}
    fatal: list[FedfmError] = []
    while True:
        for refusal in door.look().refused:
            refused |= dict.fromkeys(refusal.sites, refusal.error)
            if _is_fatal(refusal, refused, config):
                fatal.append(refusal.error)
            else:
                say(refusal_in_words(refusal))
        missing = [site for site in config.sites() if site not in roll.nodes]
        is_over = time.monotonic() > deadline
        if fatal and (not door.waits or (is_over and config.engine.superlink)):
            raise type(fatal[0])(_once(problem for error in fatal for problem in error.problems))
        if not fatal and (not missing or (is_over and not too_few(config, roll.site_domains()))):
            break
        if is_over and not door.waits:
            mend = "start these sites, or take them out of the configuration"
            raise EngineError(f"no node holds {', '.join(missing)} after {wait:.0f} s", mend=mend)
        time.sleep(REMOTE_POLL_SECONDS if config.engine.superlink else POLL_SECONDS)
    for site in missing:
        if site not in refused:
            say(f"the run begins without site {site}: no node holds it after {wait:.0f} s")
    _agree_on_labels(config, roll, missing, say)
    _check_watched(config, roll)
    return roll


def _agree_on_labels(config: RunConfig, roll: Roll, missing: Collection[str], say: Callable[[str], None]) -> None:
    """Fill in the domains of the roll; `say` hears what is odd about their data."""
    for domain in config.domains.keys() - roll.domains.keys():  # a run that goes on has them from its beginning
        cards = [card for _, card in sorted(roll.cards.items()) if card.domain == domain]
        roll.domains[domain] = agree(domain, cards)
        if config.engine.superlink or any(site.source for site in config.domains[domain].site):  # of their own
            for sentence in check_together(domain, cards, _missing_of(domain, missing, config)):
                say(sentence)
    roll.domains = {domain: roll.domains[domain] for domain in config.domains}


def _missing_of(domain: str, missing: Collection[str], config: RunConfig) -> list[str]:
    """The sites of a domain that may still come: none in a simulation, where whoever is refused stays away."""
    if not config.engine.superlink:
        return []
    return [site for site in config.domains[domain].site_names(domain) if site in missing]


def too_few(config: RunConfig, there: Mapping[str, str]) -> dict[str, str]:
    """Domain -> how few of its sites are in `there` (site -> domain), in words, where it must have more to begin."""
    counts, found = Counter(there.values()), {}
    for domain, settings in config.domains.items():
        need = settings.minimum_sites or len(settings.site_names(domain))
        if counts[domain] < need:
            found[domain] = f"{counts[domain]} of {need} sites of domain {domain}"
    return found


def _is_fatal(refusal: Refusal, refused: Collection[str], config: RunConfig) -> bool:
    """Can the run not do without whom a refusal keeps out? Of a node without a name: only in a simulation."""
    if not refusal.sites:
        return not config.engine.superlink
    domains = config.sites()
    left = {site: domain for site, domain in domains.items() if site not in refused}
    return any(domains.get(site) in too_few(config, left) for site in refusal.sites)


def refusal_in_words(refusal: Refusal) -> str:
    """A sentence for the screen."""
    who = f"site {', '.join(refusal.sites)}" if refusal.sites else f"node {refusal.node}"
    return f"{who} is left out: {refusal.error}"


def _check_watched(config: RunConfig, roll: Roll) -> None:
    """Early stopping cannot watch domains of which no site has validation examples. Raises ConfigError."""
    metric = config.early_stopping.metric
    if not config.early_stopping.patience:
        return
    watched = [metric] if metric in roll.domains else list(roll.domains)
    cards = [card for card in roll.cards.values() if card.domain in watched]
    if not any(card.num_examples("validation") for card in cards):
        whose = f"domain {metric} has" if metric in roll.domains else "the domains have"
        what = f"{whose} no validation examples"
        mend = "watch another metric, or give the domain validation examples"
        raise ConfigError(what, where="early-stopping.metric", mend=mend)


def refuse_changed_data(roll: Roll, before: Mapping[str, Mapping[str, Any]]) -> None:
    """A run goes on with the data that it began with. `before`: the sites of run.json. Raises DataError."""
    changed = [
        changed_data(card).problems[0]
        for site, card in sorted(roll.cards.items())
        if site in before and before[site]["sha256"] != card.sha256
    ]
    if changed:
        raise DataError([*(replace(problem, mend="") for problem in changed[:-1]), changed[-1]])


def _once(problems) -> list[Problem]:
    return list(dict.fromkeys(problems))


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


def load_cards(folder: Path) -> dict[str, DomainCard]:
    """What `save_cards` has written; nothing where there is nothing."""
    file = folder / "domains.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return {domain: DomainCard.from_dict(row) for domain, row in rows.items()}
