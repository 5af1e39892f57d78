"""A run that was killed ends, once resumed, as if nothing had happened: real processes, SIGKILL, at bad moments."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_helpers import PATIENCE, events, fedfm, kill_when, one_thread, only_run, small, start, wait_until_gone
from engine_helpers import write_config as write

from fedfm import Run, run

pytestmark = pytest.mark.slow
ROUNDS = "rounds=3"
PRIVATE = 'sharing."head*"=private'  # so that sites have something of their own to lose


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody killed."""
    return run(small(tmp_path_factory.mktemp("straight"), ROUNDS, PRIVATE))


def table(file: Path, without: str = "") -> list[dict[str, str]]:
    """A table's rows as they are written."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [{name: cell for name, cell in row.items() if name != without} for row in csv.DictReader(lines)]


def private_files(folder: Path) -> dict[str, bytes]:
    root = folder / "checkpoint" / "sites"
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.rglob("*.safetensors"))}


def assert_same_run(folder: Path, other: Path) -> None:
    """Weights, scores, tables, what sites kept: everything but seconds and dates."""
    mine, theirs = (json.loads((path / "run.json").read_text(encoding="utf-8")) for path in (folder, other))
    for key in ("status", "final_weights_sha256", "final", "rounds", "bytes_up", "bytes_down", "best_round", "reason"):
        assert mine[key] == theirs[key], key
    assert (folder / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert table(folder / "rounds.csv", "seconds") == table(other / "rounds.csv", "seconds")
    assert private_files(folder) == private_files(other)
    assert (folder / "model" / "weights.safetensors").read_bytes() == (
        other / "model" / "weights.safetensors"
    ).read_bytes()


def resume(folder: Path) -> None:
    done = fedfm("resume", folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(folder)


def first_site_done(phase: str, number: int) -> Callable[[Path], bool]:
    """The first of six sites has finished, the others have not."""
    wanted = {"event": "site-finished", "phase": phase, "round": number}
    return lambda folder: any(wanted.items() <= event.items() for event in events(folder))


MOMENTS = {
    "before anything is known": lambda folder: (folder / "run.json").exists(),
    "while round 0 is scored": first_site_done("validation", 0),
    "while round 1 trains": first_site_done("train", 1),
    "while round 2 is scored": first_site_done("validation", 2),
    "while the end is tested": first_site_done("test", 3),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed(tmp_path: Path, straight: Run, moment: str) -> None:
    folder = kill_when(start("run", write(small(tmp_path, ROUNDS, PRIVATE), tmp_path)), tmp_path, MOMENTS[moment])
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["status"] == "running"
    resume(folder)
    assert_same_run(folder, straight.folder)


def test_killed_again_and_again(tmp_path: Path, straight: Run) -> None:
    process = start("run", write(small(tmp_path, ROUNDS, PRIVATE), tmp_path))
    for phase, number in (("train", 1), ("train", 2), ("validation", 3), ("test", 3)):
        folder = kill_when(process, tmp_path, first_site_done(phase, number))
        process = start("resume", folder)
    output, complaint = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output + complaint
    assert_same_run(folder, straight.folder)


KILLED_IN_A_WRITE = """
import os, signal, sys
from fedfm.cli import main

name, left = sys.argv[1], int(sys.argv[2])

def flush_or_die(descriptor, fsync=os.fsync):
    global left
    left -= os.readlink(f"/proc/self/fd/{descriptor}").endswith(name)
    if left == 0:
        os.truncate(descriptor, os.fstat(descriptor).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)

os.fsync = flush_or_die
sys.argv[1:] = sys.argv[3:]
main()
"""


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the file behind a descriptor in /proc")
@pytest.mark.parametrize(("file", "count"), [("state.tmp", 1), ("state.tmp", 3), ("run.json.tmp", 3)])
def test_killed_while_a_file_is_written(tmp_path: Path, straight: Run, file: str, count: int) -> None:
    """SIGKILL takes the process at its `count`-th flush of that file, of which half has reached the disk.

    state.tmp: the checkpoint of round 0, and of round 2; run.json.tmp: the last write of the run, its end.
    """
    config = write(small(tmp_path, ROUNDS, PRIVATE), tmp_path)
    command = [sys.executable, "-c", KILLED_IN_A_WRITE, file, str(count), "run", str(config)]
    killed = subprocess.run(command, env=one_thread(), capture_output=True, text=True, timeout=PATIENCE)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    folder = only_run(tmp_path)
    (torn,) = folder.rglob(f"*{file}")
    assert torn.stat().st_size > 0
    resume(folder)
    assert_same_run(folder, straight.folder)
    assert not list(folder.rglob("*.tmp"))


def test_killed_under_flower_and_resumed(tmp_path: Path, straight: Run) -> None:
    """With the process that started them, Flower's own processes end; the run goes on from its checkpoint."""
    config = write(small(tmp_path, ROUNDS, PRIVATE, "engine.name=flower"), tmp_path)
    folder = kill_when(start("run", config), tmp_path, first_site_done("train", 2))
    wait_until_gone(tmp_path)
    assert max(event["round"] for event in events(folder) if event["event"] == "round-finished") < 3
    resume(folder)
    wait_until_gone(tmp_path, seconds=0)
    assert_same_run(folder, straight.folder)


def test_a_finished_run_is_left_as_it_is(straight: Run) -> None:
    before = {file: file.read_bytes() for file in straight.folder.rglob("*") if file.is_file()}
    resume(straight.folder)
    assert {file: file.read_bytes() for file in straight.folder.rglob("*") if file.is_file()} == before
