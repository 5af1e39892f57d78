"""FedAvg against Flower's own aggregation, on the same replies."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from strategy_helpers import largest_difference, round_of, strategy_named

from fedfm.arrays import Arrays, add_scaled
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import from_record, to_record
from fedfm.strategies import Update

SHAPES = {"shared/lora_A": (4, 16), "shared/lora_B": (16, 4), "text/head.weight": (3, 16), "text/head.bias": (3,)}
EXAMPLES = (5000, 500, 100, 50, 1)


def flower_reply(weights: Arrays, examples: int, node: int) -> Message:
    order = Message(RecordDict(), dst_node_id=node, message_type="train")
    content = RecordDict({"arrays": to_record(weights), "metrics": MetricRecord({"num-examples": examples})})
    return Message(content, reply_to=order)


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_one_domain_equals_flowers_fedavg_over_several_rounds(name):
    """Flower averages weights, we add the mean change: the same real number, float32 apart.

    Sites of very different sizes; over 4 rounds each starts from its own side's weights of the round before.
    """
    take_identity()
    draw = np.random.default_rng(7)
    ours = {tensor: draw.standard_normal(shape).astype(np.float32) for tensor, shape in SHAPES.items()}
    flowers, start = dict(ours), dict(ours)
    strategy, oracle = strategy_named(name), FlowerFedAvg()
    state = strategy.start(ours)
    for number in range(1, 5):
        steps = [{t: draw.standard_normal(s).astype(np.float32) for t, s in SHAPES.items()} for _ in EXAMPLES]
        updates = [
            Update(f"site-{k}", "text", n, step) for k, (n, step) in enumerate(zip(EXAMPLES, steps, strict=True))
        ]
        ours, state = strategy.aggregate(ours, iter(updates), state, round_of(updates))
        replies = [
            flower_reply(add_scaled(flowers, step), n, node)
            for node, (n, step) in enumerate(zip(EXAMPLES, steps, strict=True), 1)
        ]
        record, _ = oracle.aggregate_train(number, replies)
        assert isinstance(record, ArrayRecord)
        flowers = from_record(record)
        assert largest_difference(ours, flowers) < 1e-6
    assert largest_difference(ours, start) > 0.5  # it did move
    assert all(value.dtype == np.float32 for value in ours.values())
