"""FedBuff on the virtual clock: who is done first, on which weights, and that a buffer of all sites is FedAvg."""

from __future__ import annotations

import numpy as np
import pytest
from federation_helpers import TEXTS, Recorder, outcome, same, tiny

from fedfm.engines.local import LocalGrid
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.run_folder import RunFolder

SPEEDS = tuple(f"simulation.speeds.finance-{n}={speed}" for n, speed in ((1, 4.0), (2, 2.0), (3, 1.0)))
CLOCK = (
    "simulation.seconds-per-step=1",
    *SPEEDS,
    "local.batch-size=2",
)  # 4 examples a site: 2 steps, 0.5, 1, 2 seconds


def config_for(folder, *more: str):
    return tiny(folder, "rounds=6", "engine.dtype=float64", *more, finance={**TEXTS, "sites": 3, "max-examples": 12})


def run_together(config, node_app=app):
    folder = RunFolder.create(config)
    RoundLoop(LocalGrid(node_app), config, folder).run()
    return outcome(folder)


def test_a_buffer_of_all_sites_is_fedavg(tmp_path):
    buffered = run_together(config_for(tmp_path / "a", "strategy.name=fedbuff", "strategy.buffer=3"))
    plain = run_together(config_for(tmp_path / "b"))
    for name, value in plain.weights.items():
        np.testing.assert_allclose(buffered.weights[name], value, rtol=0, atol=1e-12, err_msg=name)


def test_who_is_done_first_comes_first_and_works_on_what_was_newest_when_it_began(tmp_path):
    """Durations 0.5, 1 and 2 s, one update a step, by hand: s1 at 0.5; s1 and s2 at 1.0, s1 first; s1 at 1.5; ...

    time     0.5  1.0  1.0  1.5  2.0  2.0
    site     1    1    2    1    1    2          finance-3 is done at 2.0 too, and has the last name
    version  0    1    0    2    4    3
    """
    recorder = Recorder()
    done = run_together(config_for(tmp_path, "strategy.name=fedbuff", "strategy.buffer=1", *CLOCK), recorder)
    orders = [(order.sites[0], down) for order, down, _ in recorder.of("train")]
    assert [site[-1] for site, _ in orders] == list("112112")
    assert done.folder.rounds["virtual_seconds"].tolist()[1:] == pytest.approx([0.5, 0.5, 0.0, 0.5, 0.5, 0.0])
    sent = [down for _, down in orders]
    assert same(sent[0], sent[2])  # finance-2 began at 0 on the first weights
    assert not same(sent[0], sent[1])
    assert len({float(next(iter(down.values())).ravel()[:50].sum()) for down in sent}) == 5


def test_a_late_change_counts_less(tmp_path):
    moved = []
    for power in (0.0, 8.0):
        more = ("strategy.name=fedbuff", "strategy.buffer=1", f"strategy.staleness-power={power}", *CLOCK)
        three, two = (run_together(config_for(tmp_path / f"{power}{n}", *more, f"rounds={n}")) for n in (3, 2))
        moved.append(sum(np.abs(three.weights[name] - two.weights[name]).sum() for name in two.weights))
    assert moved[1] < 0.02 * moved[0]  # the third change is finance-2's, two steps late: 3 ** -8


def test_it_is_resumed_where_it_was(tmp_path):
    config = config_for(tmp_path, "strategy.name=fedbuff", "strategy.buffer=2", *CLOCK)
    whole = run_together(config)
    folder = RunFolder.create(config)

    def stop(event) -> None:
        if event["event"] == "phase" and event["round"] == 4 and event["phase"] == "train":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        RoundLoop(LocalGrid(app), config, folder, stop).run()
    RoundLoop(LocalGrid(app), config, folder).run()
    assert outcome(folder).sha256 == whole.sha256
    assert folder.rounds["virtual_seconds"].equals(whole.folder.rounds["virtual_seconds"])
