"""One configuration, one result: whoever computes it, in whatever order, and however often it is stopped."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import TEXTS, events, same, tiny, train_federation, with_names

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder


def test_two_runs_give_the_same_weights_and_tables(tmp_path):
    first, second = (train_federation(tiny(tmp_path, "rounds=2")) for _ in range(2))
    assert first.sha256 == second.sha256
    assert same(first.weights, second.weights)
    assert first.folder.metrics.equals(second.folder.metrics)
    assert first.folder.info["final"] == second.folder.info["final"]


def test_the_seed_matters(tmp_path):
    assert train_federation(tiny(tmp_path)).sha256 != train_federation(tiny(tmp_path, "seed=1")).sha256


def test_every_piece_of_work_runs_with_the_threads_that_its_own_run_asks_for(tmp_path):
    """Sums in float32 depend on the number of threads, so a run may not inherit that of another in the process."""
    import torch

    seen = []

    def watching(message, context):
        reply = app(message, context)
        if message.metadata.message_type == "train":
            seen.append(torch.get_num_threads())
        return reply

    one = tiny(tmp_path, "body.tuning=head", finance=TEXTS)
    two = one.replace("engine.threads=2")
    first = train_federation(one, watching)
    other = train_federation(two, watching)
    again = train_federation(one, watching)
    assert seen == [1, 1, 2, 2, 1, 1]
    assert first.sha256 == again.sha256
    for name, value in first.weights.items():
        assert np.allclose(other.weights[name], value, rtol=0, atol=1e-5)


def test_rounded_products_are_a_matter_of_gpus_and_of_the_run_that_asks_for_them(tmp_path):
    """On a CPU tf32 is float32, to the bit; and the next run of the process multiplies as it is told."""
    import torch

    seen = []

    def watching(message, context):
        reply = app(message, context)
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return reply

    plain = tiny(tmp_path, "engine.device=cpu", finance=TEXTS)
    sums = []
    for name, rounds in (("float32", False), ("tf32", True), ("float32", False)):
        seen.clear()
        sums.append(train_federation(plain.replace(f"engine.dtype={name}"), watching).sha256)
        assert seen[-1] == (rounds, rounds)
    assert sums[0] == sums[1] == sums[2]


def order_would_show(tmp_path):
    """Five unequal sites of one domain in float64: a sum of five numbers in another order has other last bits."""
    five = {**TEXTS, "sites": 5, "max-examples": 40, "partition": "quantity"}
    return tiny(tmp_path, "rounds=2", "engine.dtype=float64", finance=five)


@pytest.mark.parametrize("dealt", [(5, 4, 3, 2, 1), (2, 4, 1, 5, 3)])
def test_which_node_plays_which_site_does_not_matter(tmp_path, dealt):
    config = order_would_show(tmp_path)
    names = {node: f"finance-{number}" for node, number in enumerate(dealt, 1)}
    assert train_federation(config, with_names(names)).sha256 == train_federation(config).sha256


def test_replies_that_come_in_reverse_are_summed_by_name(tmp_path):
    """A grid that hands out the replies of a phase last one first, as a network might."""

    class Backwards(LocalGrid):
        def pull_messages(self, message_ids):
            replies = [reply for name in message_ids for reply in super(Backwards, self).pull_messages([name])]
            return replies[::-1]

    config = order_would_show(tmp_path)
    folder = RunFolder.create(config)
    RoundLoop(Backwards(app, 5), config, folder).run()
    assert folder.info["final_weights_sha256"] == train_federation(config).sha256
    came = [event["site"] for event in events(folder, "site-finished") if event["phase"] == "train"][:5]
    assert came == sorted(came, reverse=True)  # they did come backwards


def test_fedprox_without_mu_is_fedavg_to_the_bit(tmp_path):
    fedavg = train_federation(tiny(tmp_path, "rounds=2"))
    none, some = (
        train_federation(tiny(tmp_path, "rounds=2", "strategy.name=fedprox", f"strategy.proximal-mu={mu}"))
        for mu in (0, 1)
    )
    assert none.sha256 == fedavg.sha256
    assert some.sha256 != fedavg.sha256


class Stop(Exception):  # noqa: N818
    """Not an error: somebody pulled the plug."""


MOMENTS = {
    "while round 2 trains": lambda e: e["event"] == "site-finished" and e["phase"] == "train" and e["round"] == 2,
    "while round 2 is scored": lambda e: e["event"] == "phase" and e["phase"] == "validation" and e["round"] == 2,
    "after round 2": lambda e: e["event"] == "round-finished" and e["round"] == 2,
    "while round 0 is scored": lambda e: e["event"] == "phase" and e["round"] == 0,
    "while the end is tested": lambda e: e["event"] == "site-finished" and e["phase"] == "test",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_stopped_and_resumed_run_ends_as_if_it_had_not_been_stopped(tmp_path, moment):
    """Equal weights, tables and private files; heads are private here, so that sites have something to lose."""
    config = tiny(tmp_path, "rounds=3", 'sharing."head*"=private')
    straight = train_federation(config)

    def pull_the_plug(event):
        if MOMENTS[moment](event):
            raise Stop

    folder = RunFolder.create(config)
    with pytest.raises(Stop):
        train_federation(config, folder=folder, listen=pull_the_plug)
    assert folder.info["status"] == "running"
    resumed = train_federation(config, folder=folder)
    assert resumed.sha256 == straight.sha256
    assert resumed.private() == straight.private()
    assert resumed.folder.metrics.equals(straight.folder.metrics)
    numbers = ["round", "bytes_down", "bytes_up", "sites_asked", "sites_used", "sites_dropped", "loss"]
    assert resumed.folder.rounds[numbers].equals(straight.folder.rounds[numbers])
    for key in ("status", "rounds", "bytes_up", "bytes_down", "final"):
        assert folder.info[key] == straight.folder.info[key]


def test_a_finished_run_can_be_finished_again(tmp_path):
    """Killed after the last checkpoint, before the test: resuming trains nothing and tests once."""
    config = tiny(tmp_path)
    done = train_federation(config)
    again = train_federation(config, folder=done.folder)
    assert again.sha256 == done.sha256
    tests = again.folder.metrics.query("split == 'test' and scope == 'federation'")
    assert tests["metric"].tolist() == ["mean", "worst"]
    assert np.isfinite(tests["value"]).all()
