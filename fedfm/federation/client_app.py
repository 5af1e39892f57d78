"""The site's side as a Flower app: it says who it is, trains when ordered, scores when ordered."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.errors import DataError, FedfmError
from fedfm.federation import messages, site, site_data
from fedfm.federation.auditing import audited
from fedfm.federation.messages import Answer, Order, SiteCard
from fedfm.federation.pooling import train_pooled
from fedfm.federation.real_site import real_site
from fedfm.federation.versions import refuse_other_version, version_of

app = ClientApp(mods=[audited])  # a real site records what comes and goes


@app.query()
def query(message: Message, context: Context) -> Message:
    """A card for each site of this node, or all that is wrong with their data, or why a real site stays out."""
    sites: Sequence[str] = ()
    try:
        here = real_site(context)
        sites = [here.settings.site] if here else ()
        who = f'site "{here.settings.site}"' if here else f"node {context.node_id}"
        with here.turning_errors_into_sentences() if here else nullcontext():
            refuse_other_version(who, version_of(message), at_site=True)
            config = site_data.parse_config(messages.read_query(message))
            if here is None:
                held = site_data.sites_of_node(config, context)
                sites = [name for name, _ in held]
                cards = _cards(config, held)
            else:
                cards = [here.card(config)]
    except FedfmError as error:
        return messages.write_problem(error, message, sites)
    return messages.write_cards(cards, message)


def _cards(config: RunConfig, held: Sequence[tuple[str, str]]) -> list[SiteCard]:
    cards, refused = [], []
    for name, domain in held:
        try:
            cards.append(site_data.site_card(config, domain, name))
        except DataError as error:
            refused += error.problems
    if refused:
        raise DataError(list(dict.fromkeys(refused)))
    return cards


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local training of a pack of sites, or, where a bound is asked for, on their pooled data."""
    return _work(_train, message, context)


def _train(order: Order, received: Arrays) -> Answer:
    return (train_pooled if order.cards else site.train)(order, received)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The received model on one split of a pack of sites."""
    return _work(site.evaluate, message, context)


def _with_scores(job: Callable[[Order, Arrays], Answer], order: Order, received: Arrays) -> Answer:
    """What the order wants scored beside its work comes first: it is of the weights as they were received."""
    beside = site.score_beside(order, received)
    return replace(job(order, received), beside=beside)


def _work(job: Callable[[Order, Arrays], Answer], message: Message, context: Context) -> Message:
    started = time.perf_counter()
    try:
        order, received = messages.read_order(message)
        here = real_site(context)
        if here is None:
            answer = _with_scores(job, order, received)
        else:
            with here.turning_errors_into_sentences():
                order = here.accept(order, received)
                answer = here.release(order, received, _with_scores(job, order, received))
    except FedfmError as error:
        return messages.write_problem(error, message)
    share = (time.perf_counter() - started) / len(order.sites)  # the sites of a pack work at the same time
    seconds = {"seconds": [share] * len(order.sites)}
    return messages.write_answer(replace(answer, metrics={**answer.metrics, **seconds}), message)
