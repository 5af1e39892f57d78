"""What a real site allows: pure functions from its settings and what it is asked, or about to send, to problems.

A site checks three times: a query before its data are read, an order before any work, and an answer before it leaves.
What was found goes to the coordinator as a PolicyError, and that site's part of the round is all that is lost.

The last check looks at the names of the tensors that are really in the message. The places that `top-k` sends count
through all tensors of an update and name none: there the names are those that the site was sent, of which an update
holds a part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedfm.arrays import group_of, num_bytes
from fedfm.config import RunConfig
from fedfm.config.site import AllowConfig, SiteSettings
from fedfm.errors import Problem, did_you_mean
from fedfm.federation.compression import ENCODED
from fedfm.federation.messages import Answer, Order, SiteCard, split_more
from fedfm.strategies import Strategy, make_strategy

MIB = 2**20
ASK = "ask the site's administrator, whose site.toml decides"


def problems_of_run(settings: SiteSettings, config: RunConfig) -> list[Problem]:
    """What of a run, as its configuration tells it, this site does not allow."""
    allow, strategy, rounds = settings.allow, make_strategy(config.strategy), config.rounds
    name, tuning, attack = config.strategy.name, config.body.tuning, config.simulation.attack
    found = _problems_of_place(settings, config) + _problems_of_columns(settings, config)
    if allow.strategies and name not in allow.strategies:
        found.append(Problem(f'it allows only {_listed(allow.strategies)}, not "{name}"', "strategy.name", ASK))
    if tuning not in allow.tunings:
        found.append(Problem(f'it allows only {_listed(allow.tunings)}, not "{tuning}"', "body.tuning", ASK))
    if rounds > allow.max_rounds:
        found.append(Problem(f"it allows at most {allow.max_rounds} rounds, not {rounds}", "rounds", ASK))
    if strategy.pools:
        what = f"{name} pools the data of sites, and those of a real site do not leave it"
        found.append(Problem(what, "strategy.name", "choose a strategy that is no bound"))
    if attack != "none":
        what = f'it is a real site and plays no attacker ("{attack}")'
        found.append(Problem(what, "simulation.attack", "simulate attacks with engine.name=local"))
    found += _problems_of_noise(config, strategy) if allow.require_noise else []
    return _of_site(settings, found)


def _problems_of_place(settings: SiteSettings, config: RunConfig) -> list[Problem]:
    sites = config.sites()
    if settings.site not in sites:
        guess = did_you_mean(settings.site, sites)
        what = f"the configuration has no such site.{guess} It has {', '.join(sites)}"
        return [Problem(what, "domains", "give the site this name in the configuration, or in its site.toml")]
    if sites[settings.site] != settings.domain:
        what = f'it is a site of domain "{settings.domain}", and in the configuration of "{sites[settings.site]}"'
        return [Problem(what, "domains", "one of the two files is wrong")]
    return []


def _problems_of_columns(settings: SiteSettings, config: RunConfig) -> list[Problem]:
    """What a column holds leaves the site as the names of labels: which one that is, is not for the coordinator."""
    found, domain = [], config.domains.get(settings.domain)
    pairs = {"text-column": ("text_column", "texts"), "label-column": ("label_column", "labels")}
    for key, (name, which) in pairs.items() if domain else ():
        own, asked = getattr(settings, name), getattr(domain, name)
        if own != asked:
            what = f'it was asked to read its {which} from the column "{asked}", and its site.toml says "{own}"'
            mend = f'set it to "{own}"; or the site\'s owner allows the other with {key} = "{asked}" in its site.toml'
            found.append(Problem(what, f"domains.{settings.domain}.{key}", mend))
    return found


def _problems_of_noise(config: RunConfig, strategy: Strategy) -> list[Problem]:
    """The noise of [update] is added to the change of the weights, and to nothing that goes up beside it."""
    found = []
    if not (config.update.clip and config.update.noise):
        found.append(Problem("it sends only what is clipped and noised", "update", "set update.clip and update.noise"))
    if strategy.returns:
        what = f"{config.strategy.name} also sends {_listed(strategy.returns)}, to which no noise is added"
        found.append(Problem(what, "strategy.name", "choose a strategy that sends the change of the weights only"))
    return found


def problems_of_order(
    settings: SiteSettings, config: RunConfig, order: Order, received: Mapping[str, np.ndarray], released: int
) -> list[Problem]:
    """What of an order this site does not do. `released`: updates that have left it so far, over all runs."""
    found = []
    if order.sites != (settings.site,) or order.card.domain != settings.domain or order.cards:
        asked = f"{_listed(order.sites)} of {order.card.domain}"
        found.append(Problem(f"the order is not for it alone: {asked}", "order"))
    if order.round > settings.allow.max_rounds:
        found.append(Problem(f"it allows at most {settings.allow.max_rounds} rounds", f"round {order.round}", ASK))
    found += _problems_of_size(settings.allow, num_bytes(received), "received")
    if not order.split:
        found += _problems_of_releases(settings.allow, released)
    return [*problems_of_run(settings, config), *_of_site(settings, found)]


def problems_of_answer(
    settings: SiteSettings, order: Order, received: Mapping[str, np.ndarray], answer: Answer, released: int
) -> list[Problem]:
    """What of an answer must not leave. `released`: updates that have left before it."""
    arrays = [answer.arrays, *(part.arrays for part in answer.beside.values())]
    found = _problems_of_size(settings.allow, sum(map(num_bytes, arrays)), "to be sent")
    if not order.split and answer.arrays:
        found += _problems_of_groups(settings, received, answer.arrays)
        found += _problems_of_examples(settings.allow, int(answer.metrics["num-examples"][0]))
        found += _problems_of_releases(settings.allow, released)
    return _of_site(settings, found)


def problems_of_card(settings: SiteSettings, card: SiteCard) -> list[Problem]:
    """What of a site's own description must not leave."""
    examples = card.num_examples("train")
    found = _problems_of_examples(settings.allow, examples)
    if settings.allow.finds_free_labels(card.task, len(card.labels), examples):
        what = "its labels are nearly as many as its training examples, and the names of labels would leave it"
        mend = "at the site: its log has the numbers, label-column says where labels are read"
        found.append(Problem(what, "allow.min-examples-per-label", mend))
    return _of_site(settings, found)


def _problems_of_examples(allow: AllowConfig, examples: int) -> list[Problem]:
    least = allow.min_examples
    if examples >= least:
        return []
    what = f"{examples} training examples would stand behind its update, fewer than the {least} that it demands"
    return [Problem(what, "allow.min-examples", "leave the site out until it has more data")]


def _problems_of_groups(
    settings: SiteSettings, received: Mapping[str, np.ndarray], leaving: Mapping[str, np.ndarray]
) -> list[Problem]:
    own, more = split_more(leaving)
    names = set(own).union(*more.values())
    hidden = {name for name in more.get(ENCODED, {}) if name.startswith("#")}
    if hidden:
        names = (names - hidden) | split_more(received)[0].keys()
    kinds = {"shared": "shared", settings.domain: "domain"}
    allowed = settings.allow.groups
    wrong = sorted(n for n in names if not n.startswith("merged/") and kinds.get(group_of(n)) not in allowed)
    if not wrong:
        return []
    what = f"{len(wrong)} tensors are not of a group that may leave ({_listed(allowed)}), the first is {wrong[0]}"
    return [Problem(what, "allow.groups", 'move them with a pattern of [sharing] to "private" or an allowed group')]


def _problems_of_releases(allow: AllowConfig, released: int) -> list[Problem]:
    if not allow.max_releases or released < allow.max_releases:
        return []
    return [Problem(f"it has sent {released} updates, and no more are to leave it", "allow.max-releases", ASK)]


def _problems_of_size(allow: AllowConfig, num_bytes: int, which: str) -> list[Problem]:
    size = num_bytes / MIB
    if size <= allow.max_message_mib:
        return []
    what = f"the tensors {which} are {size:.1f} MiB, and it allows {allow.max_message_mib:g}"
    return [Problem(what, "allow.max-message-mib", "a smaller body.lora-rank, or [update] compress, makes them fewer")]


def _of_site(settings: SiteSettings, problems: Sequence[Problem]) -> list[Problem]:
    return [Problem(f'site "{settings.site}" refuses: {p.what}', p.where, p.mend) for p in problems]


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "nothing"
