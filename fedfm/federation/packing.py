"""Which sites share an order: packs of one domain, alike in steps and length, the same whoever works on them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from statistics import fmean

from fedfm.config import RunConfig
from fedfm.federation.door import Roll

Pack = tuple[str, ...]
Kind = Callable[[str], Hashable]  # of the model that a site is sent
EXAMPLES_OF_A_PACK = 2048  # to score at once: enough to fill batches, few enough to hold their logits
SITES_OF_A_PACK = 256


def _same(site: str) -> str:
    return ""


def rows_of_domains(config: RunConfig, roll: Roll, before: Mapping[str, int] | None = None) -> dict[str, int]:
    """How many sites of each domain train at once: the number of engine.sites-at-once, or what `auto` finds.

    `before`: what a run that goes on began with; other packs would mean other last digits.
    """
    if before:
        return dict(before)
    if config.engine.sites_at_once != "auto":
        return dict.fromkeys(roll.domains, config.engine.sites_at_once)
    return {domain: _auto(config, roll, domain) for domain in roll.domains}


def _auto(config: RunConfig, roll: Roll, domain: str) -> int:
    from fedfm.models.devices import pick_device
    from fedfm.models.site_model import build_model
    from fedfm.training.budget import free_bytes, sites_at_once
    from fedfm.training.matrix import ClientMatrix

    device = pick_device(config.engine.device)
    model = ClientMatrix(build_model(config, roll.domains[domain], device)).model
    cards = [card for card in roll.cards.values() if card.domain == domain]
    words = fmean(card.mean_words for card in cards), fmean(card.words_deviation for card in cards)
    examples = fmean(card.num_examples("train") for card in cards)
    free = free_bytes(device, config.engine.workers)
    return sites_at_once(model, config.local_for(domain), words, examples, free)


def packs_to_train(
    sites: Iterable[str], roll: Roll, config: RunConfig, rows: Mapping[str, int], kind: Kind = _same,
    pools: str = "",
) -> list[Pack]:  # fmt: skip
    """Packs of at most `rows[domain]` sites, in order of their first names; packs of one where that is 1.

    `pools`: "domain" or "all", whose sites are one pack, their data pooled, wherever they are.

    Sites that take steps together should end together, and pad their texts to like lengths: they are sorted by number
    of steps, then by mean length of a text. Nothing but names, cards and configuration decides.
    """

    local = {domain: config.local_for(domain) for domain in config.domains}

    def alike(site: str) -> tuple[int, float, str]:
        card = roll.cards[site]
        return -local[card.domain].steps(card.num_examples("train")), -card.mean_words, site

    if pools:
        by_pool: dict[str, list[str]] = {}
        for site in sorted(sites):
            by_pool.setdefault(roll.cards[site].domain if pools == "domain" else "", []).append(site)
        return sorted(tuple(members) for members in by_pool.values())
    packs = []
    for domain, members in _by_node(sites, roll, kind).items():
        packs += _chunks(sorted(members, key=alike), rows[domain[0]])
    return sorted(packs)


def packs_to_score(sites: Iterable[str], roll: Roll, split: str, together: bool, kind: Kind = _same) -> list[Pack]:
    """Packs whose examples go through the model together; each site alone where not `together`."""
    packs = []
    for members in _by_node(sites, roll, kind).values():
        pack: list[str] = []
        examples = 0
        for site in sorted(members):
            held = roll.cards[site].num_examples(split)
            full = examples + held > EXAMPLES_OF_A_PACK or len(pack) == SITES_OF_A_PACK or not together
            if pack and full:
                packs.append(tuple(pack))
                pack, examples = [], 0
            pack.append(site)
            examples += held
        packs.append(tuple(pack))
    return sorted(packs)


def steps_of(site: str, roll: Roll, config: RunConfig) -> int:
    """Local steps of a site in a round."""
    card = roll.cards[site]
    return config.local_for(card.domain).steps(card.num_examples("train"))


def work_of(pack: Pack, roll: Roll, config: RunConfig) -> float:
    """Tokens that the steps of a pack read (of images: the tokens that they become)."""
    cards = [roll.cards[site] for site in pack]
    local = {domain: config.local_for(domain) for domain in {card.domain for card in cards}}
    batch_size = local[cards[0].domain].batch_size
    return sum(
        local[card.domain].steps(card.num_examples("train"))
        * batch_size
        * (card.mean_words or config.body.image_tokens)
        for card in cards
    )


def _by_node(sites: Iterable[str], roll: Roll, kind: Kind) -> dict[tuple[str, int, Hashable], list[str]]:
    """What an order needs to be theirs -> sites."""
    members: dict[tuple[str, int, Hashable], list[str]] = {}
    for site in sites:
        members.setdefault(needs(site, roll, kind), []).append(site)
    return members


def needs(site: str, roll: Roll, kind: Kind) -> tuple[str, int, Hashable]:
    """(domain, node, kind of model) of a site's order: it goes to one node, with one model."""
    return roll.cards[site].domain, roll.nodes[site], kind(site)


def _chunks(sites: Sequence[str], size: int) -> list[Pack]:
    return [tuple(sites[first : first + size]) for first in range(0, len(sites), size)]
