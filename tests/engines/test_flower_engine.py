"""The same apps under Flower's own simulation: the same weights, honest failures, nothing left running."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from engine_helpers import PATIENCE, events, fedfm, only_run, processes_of, small, write_config

from fedfm import run
from fedfm.config import load_config
from fedfm.engines import lifeline
from fedfm.engines.flower_cli import flower_environment

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def sha256(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text(encoding="utf-8"))["final_weights_sha256"]


def test_the_flower_engine_gives_the_weights_of_the_local_one(tmp_path: Path) -> None:
    """Weights, scores and tables are equal to the bit; the events, which the screen shows, come through."""
    local = run(small(tmp_path))
    heard: list[dict] = []
    flower = run(small(tmp_path, "engine.name=flower"), listen=heard.append)
    assert flower.info["status"] == "finished"
    assert flower.info["final_weights_sha256"] == local.info["final_weights_sha256"]
    assert flower.info["final"] == local.info["final"]
    assert flower.metrics.equals(local.metrics)
    assert flower.rounds.drop(columns="seconds").equals(local.rounds.drop(columns="seconds"))
    assert heard == events(flower.folder)
    assert (flower.folder / "figures").is_dir()
    assert not (flower.folder / "flower").exists()  # Flower's database and logs go when the run is done
    assert processes_of(tmp_path) == []


FLAT = (
    "rounds=2 body.layers=1 body.image-tokens=4 local.max-length=16 "
    "domains.medical.max-examples=16 domains.finance.max-examples=16 domains.ner.max-examples=16"
)


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def flwr_run(home: Path, run_config: str) -> subprocess.CompletedProcess:
    """`flwr run . --stream` in the repository, with the two SuperNodes that Flower gives by default.

    The SuperLink that Flower leaves behind ends with the command, thanks to `lifeline`.
    """
    environment = flower_environment(home, threads=1)
    environment |= {name: free_port() for name in ("FLWR_LOCAL_SUPERLINK_HTTP_API_PORT", "FLWR_LOCAL_CONTROL_API_PORT")}
    flwr = str(Path(sys.executable).with_name("flwr"))
    command = [sys.executable, "-P", lifeline.__file__, flwr, "run", ".", "--stream", "--run-config", run_config]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as process:  # fmt: skip
        output = process.stdout.read()
        process.wait(timeout=PATIENCE)
    return subprocess.CompletedProcess(command, process.returncode, output)


def test_flwr_run_in_the_repository_gives_the_same_weights(tmp_path: Path) -> None:
    """Two nodes play six sites. Defaults are those of pyproject.toml, which are those of the quickstart."""
    project = (ROOT / "pyproject.toml").read_bytes()
    done = flwr_run(tmp_path / "home", f'{FLAT} runs.folder="{tmp_path / "runs"}"')
    assert processes_of(tmp_path) == []
    assert done.returncode == 0, done.stdout
    folder = only_run(tmp_path)
    assert str(folder) in done.stdout
    quickstart = load_config(ROOT / "experiments" / "quickstart.toml", FLAT.split())
    local = run(quickstart, f"runs.folder={tmp_path / 'local'}")
    assert sha256(folder) == local.info["final_weights_sha256"]
    assert (folder / "figures").is_dir()
    assert (ROOT / "pyproject.toml").read_bytes() == project  # Flower rewrites what it takes for an old project


def fails(tmp_path: Path, *overrides: str) -> tuple[subprocess.CompletedProcess, dict]:
    """`fedfm run` under the flower engine, which is to fail; its output and run.json."""
    config = write_config(small(tmp_path, "engine.name=flower", *overrides), tmp_path)
    done = fedfm("run", config)
    info = json.loads((only_run(tmp_path) / "run.json").read_text(encoding="utf-8"))
    assert info["status"] == "failed"
    assert processes_of(tmp_path) == []
    return done, info


def test_data_that_a_site_refuses_fail_the_run_with_its_reasons(tmp_path: Path) -> None:
    """The file is read by a ClientApp in a Ray worker; what it found comes out here, as wrong input: exit code 2."""
    source = tmp_path / "finance"
    source.mkdir()
    for split in ("train", "validation", "test"):
        (source / f"{split}.csv").write_text("text,label\nup,good\ndown,good\n", encoding="utf-8")
    done, info = fails(tmp_path, f"domains.finance.source={source}")
    assert done.returncode == 2, done.stderr
    assert "error[FM201]" in done.stderr
    assert f'{source}: the training split has a single class, "good"' in done.stderr
    assert "Traceback" not in done.stderr
    assert 'the training split has a single class, "good"' in info["reason"]
    assert info["error"] == "DataError"
    assert any(event["event"] == "run-failed" for event in events(only_run(tmp_path)))


def test_a_round_without_enough_sites_fails_the_run(tmp_path: Path) -> None:
    """The ServerApp gives up; the run failed (exit code 1), and can be resumed from the round before."""
    done, info = fails(tmp_path, "screening.max-norm=1e-9")  # no update is so small
    assert done.returncode == 1, done.stderr
    assert "error[FM501]" in done.stderr
    assert "round 1: 0 usable updates" in done.stderr
    assert "Traceback" not in done.stderr
    assert info["error"] == "TooFewSitesError"
    assert (only_run(tmp_path) / "checkpoint" / "state.safetensors").exists()
