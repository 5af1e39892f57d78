"""A strategy of Flower's as one of ours: what its `aggregate_train` makes of the sites' weights are the new weights.

It is asked as Flower's own server would ask it: `configure_train` with the present weights, so that it may keep them,
then `aggregate_train` with a reply of each site. What it keeps inside is its own: no checkpoint holds it, and a run
with it cannot be resumed exactly. Its site half is FedAvg's: Flower's strategies have none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy as Flowers

from fedfm.arrays import Arrays, add_scaled
from fedfm.errors import RunError
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import from_record, to_record
from fedfm.strategies.base import Round, State, Strategy, Summary, Update


class _Nodes:
    """As much of a Grid as `configure_train` looks at: who is there."""

    def __init__(self, count: int):
        self._ids = list(range(1, count + 1))

    def get_node_ids(self) -> list[int]:
        return self._ids


@dataclass(frozen=True)
class FlowerStrategy(Strategy):
    """`inner`: any `flwr.serverapp.strategy.Strategy`. All sites must send the same tensors: one domain, that is."""

    summary: ClassVar[Summary] = Summary("global", "flwr.serverapp.strategy", "all sites", "server", "1x")
    each: ClassVar[bool] = True
    inner: Any = None

    def aggregate(self, weights: Arrays, updates: Iterable[Update], state: State, round: Round) -> tuple[Arrays, State]:
        updates = list(updates)
        sent = {tuple(sorted(update.delta)) for update in updates}
        if len(sent) > 1:
            what = (
                "Flower's strategies want the same tensors of every site, and sites of unlike domains have other heads"
            )
            raise RunError(what, where="strategy", mend="one domain, or a strategy of fedfm")
        if not updates:
            return weights, state
        inner: Flowers = self.inner
        take_identity()
        present = {name: weights[name] for name in sorted(updates[0].delta)}
        list(inner.configure_train(round.number, to_record(present), ConfigRecord(), _Nodes(len(updates))))
        replies = [_reply(add_scaled(present, u.delta), u, node) for node, u in enumerate(updates, 1)]
        record, _ = inner.aggregate_train(round.number, replies)
        if record is None:
            raise RunError(f"{type(inner).__name__} made no weights of {len(updates)} updates in round {round.number}")
        return weights | {n: v.astype(weights[n].dtype) for n, v in from_record(record).items()}, state


def _reply(weights: Arrays, update: Update, node: int) -> Message:
    order = Message(RecordDict(), dst_node_id=node, message_type="train")
    loss = float(update.metrics.get("loss", 0.0))
    numbers = MetricRecord({"num-examples": update.num_examples, "train_loss": loss})
    return Message(RecordDict({"arrays": to_record(weights), "metrics": numbers}), reply_to=order)


def as_ours(strategy: Any) -> Strategy:
    """A strategy of Flower's, wrapped; one of ours as it is. Raises TypeError for anything else."""
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, Flowers):
        return FlowerStrategy(inner=strategy)
    raise TypeError(f"neither a strategy of fedfm nor of flwr.serverapp.strategy: {type(strategy).__name__}")
