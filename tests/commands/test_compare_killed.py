"""A comparison that was killed for real and started again: what is done stays, its tables are as if unbroken."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "engines"))
from engine_helpers import PATIENCE, events, fedfm, small, start, write_config

pytestmark = pytest.mark.slow
GRID = ("strategy.name=fedavg,local-only", "seed=0,1")
TABLES = ("cells", "summary", "pairs", "transfer", "reach", "tables/main")
CLOCKS = ["seconds", "run"]  # what two runs of a cell do not share: how long they took, and the name of their folder


def runs_of(root: Path) -> dict[str, str]:
    """Run folder -> status."""
    files = root.glob("runs/compare-*/runs/*/*/run.json")
    return {str(file.parent): json.loads(file.read_text(encoding="utf-8"))["status"] for file in files}


def is_in_the_middle(root: Path) -> bool:
    """One cell is done, another has trained a round and goes on."""
    runs = runs_of(root)
    going = [Path(run) for run, status in runs.items() if status == "running"]
    return "finished" in runs.values() and any(
        event["event"] == "round-finished" and event["round"] == 1 for run in going for event in events(run)
    )


def kill_all_of(process: psutil.Process) -> None:
    """SIGKILL to the command, and, as when a machine stops, to all that it has started."""
    for victim in (process, *process.children(recursive=True)):
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:  # it went with the one before
            continue


@pytest.mark.parametrize("jobs", [1, 2])
def test_killed_in_the_middle_and_started_again(tmp_path, jobs):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    configs = {}
    for root in (whole, killed):
        root.mkdir()
        configs[root] = write_config(small(root, "rounds=3"), root)
    done = fedfm("compare", configs[whole], *GRID, "--jobs", jobs)
    assert done.returncode == 0, done.stderr

    command = ("compare", configs[killed], *GRID, "--jobs", jobs)
    process = start(*command)
    deadline = time.monotonic() + PATIENCE
    while not is_in_the_middle(killed):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    kill_all_of(psutil.Process(process.pid))
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    before = runs_of(killed)
    stopped = {run for run, status in before.items() if status == "running" and Path(run, "checkpoint").is_dir()}
    ended = {run: Path(run, "run.json").read_bytes() for run, status in before.items() if status == "finished"}
    assert stopped and ended and len(ended) < 4
    assert not list(killed.glob("runs/compare-*/report.html"))

    again = fedfm(*command)
    assert again.returncode == 0, again.stderr
    assert f"4 runs (2 settings), {len(ended)} already done" in again.stdout
    assert {run: Path(run, "run.json").read_bytes() for run in ended} == ended
    after = runs_of(killed)
    assert list(after.values()).count("finished") == 4
    for run in stopped:  # went on where it stood
        assert after[run] == "finished"
        assert any(event.get("resumed_from") for event in events(Path(run)))
    folders = [Path(found.stdout.splitlines()[-1]) for found in (done, again)]
    for name in TABLES:
        left, right = (pd.read_csv(folder / f"{name}.csv").drop(columns=CLOCKS, errors="ignore") for folder in folders)
        pd.testing.assert_frame_equal(left, right)
