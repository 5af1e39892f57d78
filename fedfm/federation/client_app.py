"""The site's side as a Flower app: it says who it is, trains when ordered, scores when ordered."""

from __future__ import annotations

import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedfm.errors import FedfmError
from fedfm.federation import messages, site

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """A card for each site of this node."""
    try:
        config = site.parse_config(messages.read_query(message))
        cards = [site.site_card(config, domain, name) for name, domain in site.sites_of_node(config, context)]
    except FedfmError as error:
        return messages.write_problem(error, message)
    return messages.write_cards(cards, message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Local training of one site."""
    return _work(site.train, message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """The received model on one split of one site."""
    return _work(site.evaluate, message)


def _work(job, message: Message) -> Message:
    started = time.perf_counter()
    try:
        order, received = messages.read_order(message)
        arrays, told = job(order, received)
    except FedfmError as error:
        return messages.write_problem(error, message)
    told["seconds"] = time.perf_counter() - started
    return messages.write_answer(order.site, arrays, told, message)
