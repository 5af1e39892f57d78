"""What travels: the one file to read to know what enters and what leaves a site.

    query     down: the configuration, fedfm's version          up: a card for each site that the node holds
    train     down: shared and domain tensors, the order        up: the change of those tensors, losses, sizes
    evaluate  down: the same tensors, which split               up: tallies (see training.metrics)

Across machines a message costs seconds, whatever is in it. There the tallies of the weights that a round begins with
come with its training, and those of the last round's on both splits in one answer (`Order.beside`).

Some strategies send more beside the tensors, both ways, of the same names and shapes: `<what>><group>/<tensor>`.

An order names one site; in a simulation, where one process plays many, several of a domain: they train as rows of one
matrix, and what comes up is the mean of their changes by examples, or each of them where the strategy must see each or
quick sites train one at a time.

A tally is sums and counts; of images it also holds their class probabilities, sorted within each true class, which an
exact pooled AUC needs. Tensors are named `<group>/<tensor>`. No example and no frozen body is in any message; an update
is the change after all steps of a round, which may be one. docs/site.md lists all that leaves a site, by these names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedfm import __version__, errors
from fedfm.arrays import Arrays
from fedfm.config import Task
from fedfm.domains.card import DomainCard
from fedfm.errors import FedfmError, Problem
from fedfm.federation.flower_private import trusted_record
from fedfm.federation.wire import from_record, size_of, to_record
from fedfm.profiling import phase

MORE = ">"  # between what a strategy sends beside the weights and the tensor's name
ANSWER_RECORDS = {"arrays", "metrics", "meta", "audit"}  # the last of a site that keeps a record of its messages
LARGEST_CARD = 2**20  # bytes, of one site: names, counts and digests


@dataclass(frozen=True)
class SiteCard:
    """What a site says of itself when asked: names of labels, sizes and digests. A real site gives no `source`, and of
    `warnings` the number."""

    site: str
    domain: str
    task: Task
    labels: tuple[str, ...]
    image_shape: tuple[int, int, int] | None
    label_counts: dict[str, dict[str, int]]
    source: str
    sha256: str
    warnings: tuple[str, ...] = ()
    mean_words: float = 0.0  # of a training text; 0 for images
    words_deviation: float = 0.0  # their standard deviation
    fedfm: str = ""  # the version that the site has

    def num_examples(self, split: str) -> int:
        """Examples of a split (for tags: sentences)."""
        counts = self.label_counts[split]
        return counts["sentences"] if self.task == "token-classification" else sum(counts.values())


Scoring = tuple[str, str]  # the split that is scored, and whose model: see `Order.split`, `Order.model`


@dataclass(frozen=True)
class Order:
    """What a pack of sites of one domain is asked to do in a round. `config` is the run's configuration as JSON text.

    `rows`: how many of them train at once. `each`: every site's update is wanted, stacked, not their mean. `work`: how
    much there is to do, in tokens of training steps. `folder`: in a simulation that of the run, where sites keep what
    is private between rounds; empty at a real site.
    """

    sites: tuple[str, ...]
    round: int
    card: DomainCard
    config: str
    split: str = ""  # evaluate only
    rows: int = 1
    each: bool = False
    work: float = 0.0
    folder: str = ""
    model: str = "global"  # evaluate only: "global" (as a new site has it), "personal" or "tuned" (the site's own)
    rank: int = 0  # of the LoRA of these sites; 0: body.lora-rank
    cards: tuple[DomainCard, ...] = ()  # train only: the domains whose data are pooled; empty: each site for itself
    shares: tuple[float, ...] = ()  # train only: the part of its steps that each site gets to; empty: all of them
    used: tuple[int, ...] = ()  # of each site the last round whose update was used, 0: none; empty: all of them were
    source: str = ""  # at a real site, which fills it in: where its data lie
    beside: tuple[Scoring, ...] = ()  # to be scored as well; of a train order the weights received, before it trains
    body: str = ""  # the digest of the coordinator's frozen body, which must be the site's too; empty: not told


@dataclass(frozen=True)
class Answer:
    """The reply of a pack: `arrays` is its update (train) or its tallies (evaluate).

    `metrics`: name -> one number for each site of the order. `left_out`: site -> why its part is not in `arrays`.
    `beside`: the tallies asked for beside that. `each`: `arrays` stacks the updates of those that are not left out.
    """

    sites: tuple[str, ...]
    arrays: Arrays = field(default_factory=dict)
    metrics: Mapping[str, list[float]] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    problem: FedfmError | None = None
    beside: Mapping[Scoring, Answer] = field(default_factory=dict)
    each: bool = False


def write_query(config: str, node: int) -> Message:
    record = RecordDict({"order": ConfigRecord({"config": config, "fedfm": __version__})})
    return Message(content=record, message_type="query", dst_node_id=node)


def read_query(message: Message) -> str:
    return str(message.content["order"]["config"])


def write_cards(cards: Sequence[SiteCard], query: Message) -> Message:
    text = json.dumps([asdict(card) for card in cards])
    return Message(RecordDict({"cards": ConfigRecord({"json": text})}), reply_to=query)


def read_cards(reply: Message, sites: int = 1) -> list[SiteCard]:
    """The cards of a node's sites, of which there are at most `sites`.

    Raises the site's own error where it refused, RunError where the reply cannot be read.
    """
    try:
        if not reply.has_error():
            _check_size(reply.content, sites * LARGEST_CARD)
        _raise_problem(reply)
        return [_card(row) for row in json.loads(str(reply.content["cards"]["json"]))]
    except FedfmError:
        raise
    except Exception as error:  # whatever a node sends
        raise errors.RunError(f"a node's card cannot be read: {type(error).__name__}: {error}") from None


def _check_size(content: RecordDict, most: int) -> None:
    size = size_of(content)
    if size > most:
        raise ValueError(f"it is {size} bytes, and what was asked for is at most {most}")


def _card(row: dict) -> SiteCard:
    shape = row["image_shape"]
    row = {name: value for name, value in row.items() if name in SiteCard.__dataclass_fields__}  # another version's
    lists = {"labels": tuple(row["labels"]), "warnings": tuple(row["warnings"])}
    return SiteCard(**{**row, **lists, "image_shape": tuple(shape) if shape else None})


@phase("move")
def write_order(kind: str, order: Order, weights: ArrayRecord, node: int) -> Message:
    """`kind`: "train" or "evaluate". The record of weights may be shared by many messages."""
    fields = {
        "sites": list(order.sites), "round": order.round, "split": order.split, "config": order.config,
        "card": _card_text(order.card), "rows": order.rows, "each": order.each, "work": order.work,
        "folder": order.folder, "model": order.model, "rank": order.rank,
        "cards": [_card_text(card) for card in order.cards], "shares": list(order.shares),
        "used": list(order.used), "body": order.body,
        "beside": ["/".join(scoring) for scoring in order.beside],
    }  # fmt: skip
    content = RecordDict({"weights": weights, "order": trusted_record(ConfigRecord, fields)})
    return Message(content=content, message_type=kind, dst_node_id=node, group_id=str(order.round))


@lru_cache(maxsize=64)
def _card_text(card: DomainCard) -> str:
    return json.dumps(asdict(card))


@lru_cache(maxsize=64)
def _card_of_text(text: str) -> DomainCard:
    return DomainCard.from_dict(json.loads(text))


@phase("move")
def read_order(message: Message) -> tuple[Order, Arrays]:
    return order_of(message), from_record(message.content["weights"])


def order_of(message: Message) -> Order:
    """The order of a message, without the weights that came with it."""
    record = message.content["order"]
    cards = tuple(_card_of_text(str(text)) for text in record["cards"])
    return Order(
        tuple(record["sites"]), int(record["round"]), _card_of_text(str(record["card"])), str(record["config"]),
        str(record["split"]), int(record["rows"]), bool(record["each"]), float(record["work"]), str(record["folder"]),
        str(record["model"]), int(record["rank"]), cards, tuple(record["shares"]),
        used=tuple(record.get("used", ())), body=str(record.get("body", "")),
        beside=tuple(_scoring(str(text)) for text in record["beside"]),
    )  # fmt: skip


@phase("move")
def write_answer(answer: Answer, order: Message) -> Message:
    """The reply that `read_answer` reads: its `num_bytes`, `problem` and `each` are the reader's."""
    content = _records(answer) | {
        f"{'/'.join(scoring)}:{name}": record
        for scoring, beside in answer.beside.items()
        for name, record in _records(beside).items()
    }
    return Message(RecordDict(content), reply_to=order)


def _records(answer: Answer) -> dict[str, ArrayRecord | MetricRecord | ConfigRecord]:
    left_out = {"left-out": list(answer.left_out), "reasons": list(answer.left_out.values())}
    return {
        "arrays": to_record(answer.arrays),
        "metrics": trusted_record(MetricRecord, {n: list(map(float, values)) for n, values in answer.metrics.items()}),
        "meta": trusted_record(ConfigRecord, {"sites": list(answer.sites), **left_out}),
    }


@phase("move")
def read_answer(reply: Message, most: int = sys.maxsize, beside: Sequence[Scoring] = ()) -> Answer:
    """A reply as data; what the site refused, Flower reports as an error, or cannot be read comes back in `problem`.
    `most`: bytes that it may have; what is larger is not decoded. `beside`: the scorings that were asked for as well.
    """
    try:
        if not reply.has_error():
            _check_size(reply.content, most)
        _raise_problem(reply)
        prefixes = {scoring: f"{'/'.join(scoring)}:" for scoring in beside}
        known = ANSWER_RECORDS | {f"{prefix}{name}" for prefix in prefixes.values() for name in ANSWER_RECORDS}
        if strange := sorted(reply.content.keys() - known):
            raise ValueError(f"it holds what was not asked for: {strange[0]}")
        there = {scoring: prefix for scoring, prefix in prefixes.items() if f"{prefix}meta" in reply.content}
        found = {scoring: _answer(reply.content, prefix) for scoring, prefix in there.items()}
        return replace(_answer(reply.content, ""), beside=found)
    except FedfmError as error:
        return Answer((), problem=error)
    except Exception as error:  # whatever a site sends must not end the run of the others
        return Answer((), problem=errors.RunError(f"its answer cannot be read: {type(error).__name__}: {error}"))


def _answer(content: RecordDict, prefix: str) -> Answer:
    record, meta = content[f"{prefix}arrays"], content[f"{prefix}meta"]
    sites = tuple(map(str, meta["sites"]))
    metrics = {name: list(map(float, values)) for name, values in content[f"{prefix}metrics"].items()}
    if any(len(values) != len(sites) for values in metrics.values()):
        raise ValueError("its numbers are not one for each site")
    left_out = dict(zip(map(str, meta["left-out"]), map(str, meta["reasons"]), strict=True))
    if foreign := sorted(left_out.keys() - set(sites)):
        raise ValueError(f'it leaves out site "{foreign[0]}", which is not its own')
    return Answer(sites, from_record(record), metrics, left_out, record.count_bytes())


def _scoring(text: str) -> Scoring:
    split, _, model = text.partition("/")
    return split, model


def split_more(arrays: Mapping[str, np.ndarray]) -> tuple[Arrays, dict[str, Arrays]]:
    """The tensors themselves, and what stands beside them: what -> tensors."""
    own: Arrays = {}
    more: dict[str, Arrays] = {}
    for name, value in arrays.items():
        what, mark, inner = name.rpartition(MORE)
        (more.setdefault(what, {}) if mark else own)[inner] = value
    return own, more


def join_more(arrays: Mapping[str, np.ndarray], more: Mapping[str, Mapping[str, np.ndarray]]) -> Arrays:
    """The inverse of `split_more`."""
    return dict(arrays) | {f"{what}{MORE}{n}": v for what, inner in more.items() for n, v in inner.items()}


def write_problem(error: FedfmError, message: Message, sites: Sequence[str] = ()) -> Message:
    """A refusal of a node, or of the `sites` that it holds."""
    problems = json.dumps([asdict(problem) for problem in error.problems])
    fields = {"class": type(error).__name__, "problems": problems, "sites": list(sites), "fedfm": __version__}
    return Message(RecordDict({"problem": ConfigRecord(fields)}), reply_to=message)


def sites_of_problem(reply: Message) -> tuple[str, ...]:
    """Whose refusal a reply is, as far as it says."""
    is_refusal = not reply.has_error() and "problem" in reply.content
    return tuple(map(str, reply.content["problem"].get("sites", ()))) if is_refusal else ()


def _raise_problem(reply: Message) -> None:
    if reply.has_error():
        raise errors.RunError(f"no answer (Flower error {reply.error.code}): {reply.error.reason}")
    if "problem" in reply.content:
        record = reply.content["problem"]
        kind = getattr(errors, str(record["class"]), None)
        if not (isinstance(kind, type) and issubclass(kind, FedfmError)):  # a site names an error of ours, or none
            kind = errors.RunError
        raise kind([Problem(**row) for row in json.loads(str(record["problems"]))])
