"""Real `fedfm` processes: start them, wait for a moment of their run, look for what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from fedfm.config import RunConfig
from fedfm.engines import load_config

FEDFM = [sys.executable, "-m", "fedfm"]
PATIENCE = 180.0  # seconds; a busy machine needs tens of them to start Flower's simulation
Event = dict[str, Any]


def small(folder: Path, *overrides: str) -> RunConfig:
    """Three generated domains, two sites each, eight training examples a site, one layer, two rounds."""
    tasks = {"medical": "image-classification", "finance": "text-classification", "ner": "token-classification"}
    data = {
        "rounds": 2,
        "runs": {"folder": str(folder / "runs")},
        "body": {"layers": 1, "image-tokens": 4},
        "local": {"batch-size": 4, "max-length": 16},
        "domains": {domain: {"task": task, "max-examples": 16} for domain, task in tasks.items()},
    }
    return load_config(data, *overrides)


def start(*arguments: str | Path) -> subprocess.Popen:
    """`fedfm ARGUMENTS` as a process of its own; its output is kept for `communicate`."""
    command = [*FEDFM, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=one_thread())


def fedfm(*arguments: str | Path) -> subprocess.CompletedProcess:
    """`fedfm ARGUMENTS` to its end."""
    with start(*arguments) as process:
        output, errors = process.communicate(timeout=PATIENCE)
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def one_thread() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def write_config(config: RunConfig, folder: Path) -> Path:
    file = folder / "config.toml"
    file.write_text(config.to_toml(), encoding="utf-8")
    return file


def only_run(folder: Path) -> Path:
    """The one run folder below `folder`/runs."""
    (found,) = (file.parent for file in (folder / "runs").glob("*/run.json"))
    return found


def events(run: Path) -> list[Event]:
    """Whole lines of events.jsonl so far."""
    file = run / "events.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def kill_when(process: subprocess.Popen, folder: Path, moment: Callable[[Path], bool]) -> Path:
    """SIGKILL to `process` as soon as `moment(run folder)` is true; the run folder."""
    deadline = time.monotonic() + PATIENCE
    try:
        while True:
            ended = process.poll() is not None
            assert not ended, f"the run ended before the moment came:\n{process.communicate()}"
            assert time.monotonic() < deadline, "the moment did not come"
            if (found := list((folder / "runs").glob("*/run.json"))) and moment(found[0].parent):
                break
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    return only_run(folder)


def processes_of(folder: Path) -> list[str]:
    """Command lines of living processes that work for Flower below `folder`: their FLWR_HOME is there."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("FLWR_HOME", "").startswith(str(folder)):
                found.append(" ".join(process.cmdline()))
        except (psutil.Error, OSError):
            continue
    return found


def wait_until_gone(folder: Path, seconds: float = 30.0) -> None:
    """Until no process works below `folder`."""
    deadline = time.monotonic() + seconds
    while left := processes_of(folder):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
