"""Server rules against Flower 1.41's own classes, on identical replies over several rounds: 1e-6 or better.

Where flwr departs from the paper: FedAdam corrects the bias with round + 1, and v starts at 0 in all three adaptive
ones, and Bulyan takes its theta best from one pass of Multi-Krum (`form="flower"` here; the papers' form is the
default). QFedAvg adds 1e-10 to the loss. It averages whole weights, we changes: distances do not see the shift.
"""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from strategy_helpers import largest_difference, round_of, strategy_named

from fedfm.arrays import Arrays, add_scaled
from fedfm.federation.flower_private import take_identity
from fedfm.federation.messages import from_record, to_record
from fedfm.strategies import Update

SHAPES = {"shared/a": (5, 7), "shared/b": (11,), "shared/c": (2, 2)}
EXAMPLES = (40, 10, 25, 5, 60, 33, 20, 8, 12, 44, 3)
LOSSES = (0.4, 2.0, 1.1, 0.7, 0.2, 0.9, 1.4, 3.0, 0.8, 0.6, 1.9)
N = len(EXAMPLES)
RATES = {"eta": 0.3, "eta_l": 0.1, "beta_1": 0.9, "beta_2": 0.99, "tau": 1e-3}
OURS = {"server_learning_rate": 0.3, "beta1": 0.9, "beta2": 0.99, "tau": 1e-3, "form": "flower"}
CASES = {
    "fedavgm": ({"server_momentum": 0.7, "server_learning_rate": 0.5}, lambda: flower.FedAvgM(
        server_learning_rate=0.5, server_momentum=0.7)),
    "fedadam": (OURS, lambda: flower.FedAdam(**RATES)),
    "fedyogi": (OURS, lambda: flower.FedYogi(**RATES)),
    "fedadagrad": (OURS | {"beta1": 0.0}, lambda: flower.FedAdagrad(eta=0.3, eta_l=0.1, tau=1e-3)),
    "median": ({}, flower.FedMedian),
    "trimmed-mean": ({"trim": 0.2}, lambda: flower.FedTrimmedAvg(beta=0.2)),
    "krum": ({"byzantine": 2}, lambda: flower.Krum(num_malicious_nodes=2)),
    "multi-krum": ({"byzantine": 2, "keep": 4}, lambda: flower.MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4)),
    "bulyan": ({"byzantine": 2, "form": "flower"}, lambda: flower.Bulyan(num_malicious_nodes=2)),
    "q-fedavg": ({"q": 0.6, "lipschitz": 10.0}, lambda: flower.QFedAvg(client_learning_rate=0.1, q=0.6)),
}  # fmt: skip


def reply(weights: Arrays, examples: int, loss: float, node: int) -> Message:
    order = Message(RecordDict(), dst_node_id=node, message_type="train")
    numbers = MetricRecord({"num-examples": examples, "train_loss": loss})
    return Message(RecordDict({"arrays": to_record(weights), "metrics": numbers}), reply_to=order)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_the_same_replies_make_the_same_weights(name):
    take_identity()
    settings, oracle = CASES[name][0], CASES[name][1]()
    draw = np.random.default_rng(7)
    ours = {tensor: draw.standard_normal(shape) for tensor, shape in SHAPES.items()}
    flowers, start = dict(ours), dict(ours)
    strategy = strategy_named(name, **settings)
    state = strategy.start(ours)
    # robust rules are unweighted; Flower's Krum and Multi-Krum weigh what they have chosen by examples
    examples = EXAMPLES if name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad", "q-fedavg") else (10,) * N
    for number in range(1, 5):
        steps = [{t: 0.3 * draw.standard_normal(s) for t, s in SHAPES.items()} for _ in range(N)]
        updates = [
            Update(f"site-{k:02d}", "d", n, step, {"start-loss": loss, "loss": loss})
            for k, (n, step, loss) in enumerate(zip(examples, steps, LOSSES, strict=True))
        ]
        ours, state = strategy.aggregate(ours, iter(updates), state, round_of(updates, number=number))
        replies = [
            reply(add_scaled(flowers, step), n, loss, node)
            for node, (n, step, loss) in enumerate(zip(examples, steps, LOSSES, strict=True), 1)
        ]
        oracle.current_arrays = to_record(flowers) if name in ("q-fedavg", "fedavgm") else flowers
        record, _ = oracle.aggregate_train(number, replies)
        assert isinstance(record, ArrayRecord)
        flowers = from_record(record)
        assert largest_difference(ours, flowers) < 1e-6
    assert largest_difference(ours, start) > 1e-2
