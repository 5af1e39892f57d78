"""Where the time of a run goes: the phases add up to the wall time, and nearly all of it has a name."""

from __future__ import annotations

import json
import time

import pytest
from engine_helpers import small

from fedfm.engines import run_profiled
from fedfm.errors import ConfigError
from fedfm.profiling import phase, profile


def test_inner_phases_stop_the_clock_of_outer_ones():
    with profile() as taken:
        with phase("evaluate"):
            time.sleep(0.02)
            with phase("forward"):
                time.sleep(0.05)
            time.sleep(0.02)
        time.sleep(0.03)
        summary = taken.summary()
    seconds = summary["seconds"]
    assert seconds["forward"] == pytest.approx(0.05, abs=0.02)
    assert seconds["evaluate"] == pytest.approx(0.04, abs=0.02)
    assert seconds["other"] == pytest.approx(0.03, abs=0.02)
    assert sum(seconds.values()) == pytest.approx(summary["wall_seconds"], abs=1e-4)
    assert [name for name, *_ in taken.spans] == ["forward", "evaluate"]


def test_without_a_profile_phases_do_nothing():
    with phase("forward"):
        pass
    assert phase("load")(len)("abc") == 3


def test_the_phases_of_a_run_add_up_to_its_wall_time(tmp_path):
    """Named ones to 95 %; a step of every kind was seen."""
    config = small(tmp_path, "body.tuning=lora", "local.epochs=3")
    run_profiled(config)  # what is imported once in a process is no part of a run
    done, taken = run_profiled(config)
    written = json.loads((done.folder / "profile.json").read_text())
    assert written["seconds"].keys() == taken["seconds"].keys()
    assert sum(written["seconds"].values()) == pytest.approx(written["wall_seconds"], rel=0.05)
    assert written["share_named"] >= 0.95
    assert all(value > 0 for value in written["seconds"].values()), written
    trace = json.loads((done.folder / "timeline.json").read_text())["traceEvents"]
    assert {event["name"] for event in trace} >= {"forward", "backward", "optimizer", "evaluate", "write"}
    assert all(event["dur"] >= 0 for event in trace)


def test_a_profile_is_of_one_process(tmp_path):
    with pytest.raises(ConfigError, match="a profile is taken of one process"):
        run_profiled(small(tmp_path, "engine.name=ray"))
