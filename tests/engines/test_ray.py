"""The ray engine: the same weights as the local one, whatever its workers go through."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from engine_helpers import events, fedfm, kill_when, one_thread, only_run, small, start, write_config

from fedfm import run
from fedfm.results.run_folder import RunFolder

RAY = ("engine.name=ray", "engine.sites-at-once=2", "domains.finance.sites=4", "domains.finance.max-examples=32")


def digest(folder: Path) -> str:
    info = RunFolder.open(folder).info
    assert info["status"] == "finished"
    return info["final_weights_sha256"]


def reference(tmp_path: Path, *more: str) -> str:
    return digest(run(small(tmp_path / "local", *RAY, "engine.name=local", *more)).folder)


def rays_of(folder: Path) -> list[psutil.Process]:
    """Worker processes whose environment belongs to a run below `folder`."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if process.environ().get("FEDFM_TEST") == str(folder) and "ray::Worker" in " ".join(process.cmdline()):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def of_test(folder: Path) -> list[int]:
    """Every living process that was started for a test's folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FEDFM_TEST") == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.mark.slow
def test_one_and_two_workers_give_the_weights_of_the_local_engine(tmp_path, monkeypatch):
    """Also where the environment names another cluster: without engine.address Ray is started here."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    expected = reference(tmp_path)
    for workers in (1, 2):
        place = tmp_path / str(workers)
        place.mkdir()
        file = write_config(small(place, *RAY, f"engine.workers={workers}"), place)
        assert fedfm("run", file).returncode == 0
        assert digest(only_run(place)) == expected


@pytest.mark.slow
def test_a_worker_killed_in_a_round_changes_nothing(tmp_path, monkeypatch):
    """SIGKILL to a worker while round 1 trains."""
    monkeypatch.setenv("FEDFM_TEST", str(tmp_path))
    more = ("local.epochs=40",)
    config = write_config(small(tmp_path, *RAY, "engine.workers=2", *more), tmp_path)
    process = start("run", config)
    deadline = time.monotonic() + 120
    while not any(e["event"] == "phase" and e["phase"] == "train" for f in tmp_path.glob("runs/*") for e in events(f)):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    victims = rays_of(tmp_path)
    assert len(victims) == 2
    os.kill(victims[0].pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors
    assert digest(only_run(tmp_path)) == reference(tmp_path, *more)
    dropped = RunFolder.open(only_run(tmp_path)).rounds["sites_dropped"]
    assert dropped.tolist() == [0, 0, 0]


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_weights_and_leaves_no_process(tmp_path, monkeypatch):
    monkeypatch.setenv("FEDFM_TEST", str(tmp_path))
    config = write_config(small(tmp_path, *RAY, "engine.workers=2"), tmp_path)
    folder = kill_when(start("run", config), tmp_path, lambda f: any(e["event"] == "round-finished" for e in events(f)))
    deadline = time.monotonic() + 30
    while left := of_test(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)
    assert fedfm("resume", folder).returncode == 0
    assert digest(folder) == reference(tmp_path)
    deadline = time.monotonic() + 30  # Ray's workers end by themselves when their run is over
    while left := rays_of(tmp_path):
        assert time.monotonic() < deadline, left
        time.sleep(0.2)


GRID = """
import sys
from pathlib import Path

import ray
from engine_helpers import small
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedfm.engines.ray_engine import RayGrid, start_ray

config = small(Path(sys.argv[1]), "engine.name=ray")
start_ray(config)
grid = RayGrid(config)
weights = ArrayRecord()
parts = [RecordDict({"weights": weights, "order": ConfigRecord({"work": 1.0})}) for _ in range(5)]
left = list(grid.push_messages([Message(part, 1, "train") for part in parts]))
while left:
    for reply in grid.pull_messages(left):
        left.remove(reply.metadata.reply_to_message_id)
        assert reply.has_error() and "KeyError" in reply.error.reason, reply
assert len(grid._references) == 1
ray.shutdown()
print("as expected")
"""


@pytest.mark.slow
def test_weights_are_put_once_and_an_app_that_raises_is_an_answer(tmp_path):
    """In a process of its own: Ray leaves open files behind, which would count as this one's."""
    environment = one_thread() | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", GRID, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.stdout.splitlines()[-1:] == ["as expected"], done.stderr
