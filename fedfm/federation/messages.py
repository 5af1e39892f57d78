"""What travels: the one file to read to know what enters and what leaves a site.

    query     down: the configuration                           up: a card for each site that the node holds
    train     down: shared and domain tensors, the order        up: the change of those tensors, loss, sizes
    evaluate  down: the same tensors, which split               up: a tally (see training.metrics)

A tally is sums and counts; of images it also holds their class probabilities, sorted within each true class, which an
exact pooled AUC needs. Tensors are named `<group>/<tensor>`. No example, no gradient of a single step and no frozen
body is in any message.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedfm import errors
from fedfm.arrays import Arrays
from fedfm.config import Task
from fedfm.domains.card import DomainCard
from fedfm.errors import FedfmError, Problem


@dataclass(frozen=True)
class SiteCard:
    """What a site says of itself when asked: no example, no value, only names, sizes and digests."""

    site: str
    domain: str
    task: Task
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    label_counts: dict[str, dict[str, int]]
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()

    @property
    def num_train(self) -> int:
        """Training examples (for tags: sentences)."""
        counts = self.label_counts["train"]
        return counts["sentences"] if self.task == "token-classification" else sum(counts.values())


@dataclass(frozen=True)
class Order:
    """What one site is asked to do in a round. `config` is the run's configuration as JSON text."""

    site: str
    round: int
    card: DomainCard
    config: str
    split: str = ""  # evaluate only
    state_folder: str = ""  # simulation only: where the site keeps what is private between rounds


@dataclass(frozen=True)
class Answer:
    """A site's reply: `arrays` is its update (train) or its tally (evaluate)."""

    site: str
    arrays: Arrays
    metrics: Mapping[str, float]
    num_bytes: int
    problem: FedfmError | None = field(default=None)


def to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value)) for name, value in arrays.items()}, keep_input=True)


def from_record(record: ArrayRecord) -> Arrays:
    return {name: value.numpy() for name, value in record.items()}


def write_query(config: str, node: int) -> Message:
    record = RecordDict({"order": ConfigRecord({"config": config})})
    return Message(content=record, message_type="query", dst_node_id=node)


def read_query(message: Message) -> str:
    return str(message.content["order"]["config"])


def write_cards(cards: Sequence[SiteCard], query: Message) -> Message:
    text = json.dumps([asdict(card) for card in cards])
    return Message(RecordDict({"cards": ConfigRecord({"json": text})}), reply_to=query)


def read_cards(reply: Message) -> list[SiteCard]:
    """The cards of a node's sites. Raises the site's own error where it refused."""
    _raise_problem(reply)
    return [_card(row) for row in json.loads(str(reply.content["cards"]["json"]))]


def _card(row: dict) -> SiteCard:
    shape = row["image_shape"]
    lists = {"labels": tuple(row["labels"]), "warnings": tuple(row["warnings"])}
    return SiteCard(**{**row, **lists, "image_shape": tuple(shape) if shape else None})


def write_order(kind: str, order: Order, weights: ArrayRecord, node: int) -> Message:
    """`kind`: "train" or "evaluate". The record of weights may be shared by many messages."""
    fields = {
        "site": order.site, "round": order.round, "split": order.split, "config": order.config,
        "card": json.dumps(asdict(order.card)), "state-folder": order.state_folder,
    }  # fmt: skip
    content = RecordDict({"weights": weights, "order": ConfigRecord(fields)})
    return Message(content=content, message_type=kind, dst_node_id=node, group_id=str(order.round))


def read_order(message: Message) -> tuple[Order, Arrays]:
    record = message.content["order"]
    card = DomainCard.from_dict(json.loads(str(record["card"])))
    order = Order(
        str(record["site"]), int(record["round"]), card, str(record["config"]),
        str(record["split"]), str(record["state-folder"]),
    )  # fmt: skip
    return order, from_record(message.content["weights"])


def write_answer(site: str, arrays: Mapping[str, np.ndarray], metrics: Mapping[str, float], order: Message) -> Message:
    content = RecordDict({
        "arrays": to_record(arrays),
        "metrics": MetricRecord({name: float(value) for name, value in metrics.items()}),
        "meta": ConfigRecord({"site": site}),
    })  # fmt: skip
    return Message(content, reply_to=order)


def read_answer(reply: Message) -> Answer:
    """A reply as data; what the site refused, Flower reports as an error, or cannot be read comes back in `problem`."""
    try:
        _raise_problem(reply)
        record = reply.content["arrays"]
        metrics = {name: float(value) for name, value in reply.content["metrics"].items()}
        return Answer(str(reply.content["meta"]["site"]), from_record(record), metrics, record.count_bytes())
    except FedfmError as error:
        return Answer("", {}, {}, 0, error)
    except Exception as error:  # whatever a site sends must not end the run of the others
        return Answer("", {}, {}, 0, errors.RunError(f"its answer cannot be read: {type(error).__name__}: {error}"))


def write_problem(error: FedfmError, message: Message) -> Message:
    """A site's refusal, with its reasons."""
    fields = {"class": type(error).__name__, "problems": json.dumps([asdict(p) for p in error.problems])}
    return Message(RecordDict({"problem": ConfigRecord(fields)}), reply_to=message)


def _raise_problem(reply: Message) -> None:
    if reply.has_error():
        raise errors.RunError(f"no answer (Flower error {reply.error.code}): {reply.error.reason}")
    if "problem" in reply.content:
        record = reply.content["problem"]
        kind = getattr(errors, str(record["class"]), None)
        if not (isinstance(kind, type) and issubclass(kind, FedfmError)):  # a site names an error of ours, or none
            kind = errors.RunError
        raise kind([Problem(**row) for row in json.loads(str(record["problems"]))])
