"""Trackers are told what the tables hold, once, also by a run that was stopped and went on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedfm
from fedfm.engines import resume
from fedfm.errors import ConfigError
from fedfm.results import trackers
from fedfm.results.trackers import scalars_of

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import TEXTS

pytestmark = pytest.mark.usefixtures("small_data")


class StoppedError(Exception):
    """As a kill, after a round."""


def source(folder: Path, *names: str) -> dict:
    return {
        "rounds": 2,
        "runs": {"folder": str(folder)},
        "body": {"layers": 1},
        "local": {"batch-size": 4, "max-length": 16},
        "tracking": {"to": list(names)},
        "domains": {"finance": {**TEXTS, "sites": 2}},
    }


def stopped_and_resumed(folder: Path, name: str):
    def stop(event):
        if event["event"] == "phase" and event["round"] == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        fedfm.run(source(folder, name), listen=stop)
    (path,) = (file.parent for file in folder.glob("*/run.json"))
    return trackers.RunFolder.open(resume(path).folder)


def test_tensorboard_reads_the_tables_back(tmp_path):
    pytest.importorskip("tensorboard", reason="the extra tracking is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = stopped_and_resumed(tmp_path, "tensorboard")
    read = EventAccumulator(str(folder.path / "tracking" / "tensorboard"))
    read.Reload()
    expected = scalars_of(folder)
    seen = {(e.step, tag): [] for tag in read.Tags()["scalars"] for e in read.Scalars(tag)}
    for tag in read.Tags()["scalars"]:
        for event in read.Scalars(tag):
            seen[event.step, tag].append(event.value)
    assert {(step, name) for step, values in expected.items() for name in values} == set(seen)
    for (step, name), values in seen.items():
        assert values == [pytest.approx(expected[step][name], rel=1e-5)], (step, name)
    assert {"validation/finance/macro_f1", "validation/finance/finance-1/macro_f1", "test/mean"} <= set(expected[2])


def test_mlflow_keeps_a_local_store(tmp_path):
    mlflow = pytest.importorskip("mlflow", reason="the extra tracking is not installed")
    folder = stopped_and_resumed(tmp_path, "mlflow")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").resolve().as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("fedfm").experiment_id])
    assert run.info.run_name == folder.path.name
    assert run.data.params["domains.finance.sites"] == "2"
    history = client.get_metric_history(run.info.run_id, "validation/finance/loss")
    table = {step: values["validation/finance/loss"] for step, values in scalars_of(folder).items()}
    assert {point.step: point.value for point in history} == pytest.approx(table)
    assert len(history) == 3


def test_the_test_of_the_best_round_is_told_after_early_stopping(tmp_path):
    """What a tracker is told, whichever it is: here one that listens. Nothing is learned, so that patience ends."""
    told: dict[int, dict[str, float]] = {}

    class Listening:
        def __init__(self, folder, config, state):
            self.state = state

        def log(self, step, scalars):
            told.setdefault(step, {}).update(scalars)

        def close(self):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.TRACKERS, "tensorboard", Listening)
        patch.setitem(trackers.PACKAGES, "tensorboard", "json")
        data = source(tmp_path, "tensorboard") | {"rounds": 6, "early-stopping": {"patience": 1}}
        data["local"] |= {"learning-rate": 1e-12, "head-learning-rate": 1e-12}
        done = trackers.RunFolder.open(fedfm.run(data).folder)
    assert done.info["status"] == "early-stopped"
    best = done.info["final_round"]
    assert best < done.info["rounds"]
    assert {name for values in told.values() for name in values if name.startswith("test/")} == {
        name for name in told[best] if name.startswith("test/")
    }
    assert told[best]["test/finance/macro_f1"] == pytest.approx(done.info["final"]["finance"]["macro_f1"])
    assert told == scalars_of(done)


def test_wandb_s_last_piece_of_a_resumed_run_holds_all_of_it(tmp_path, monkeypatch):
    """What is sent later takes the place of what was there, so that the second piece begins at round 0 again."""
    wandb = pytest.importorskip("wandb", reason="the extra tracking is not installed")
    pieces, true_init = [], wandb.init

    def init(**settings):
        run, steps = true_init(**settings), []
        pieces.append((settings["id"], steps))
        true_log = run.log
        monkeypatch.setattr(run, "log", lambda row, step: (steps.append(step), true_log(row, step=step)))
        return run

    monkeypatch.setattr(wandb, "init", init)
    folder = stopped_and_resumed(tmp_path, "wandb")
    (first, one), (second, other) = pieces
    assert first == second
    assert (one, other) == ([0, 1], [0, 1, 2, 2])  # the last is the test
    assert list(folder.path.glob("tracking/wandb/offline-run-*/*.wandb"))


@pytest.mark.parametrize("package", ["mlflow", "wandb"])
def test_nothing_is_told_to_their_makers(package, tmp_path):
    """In a process of its own: under pytest mlflow keeps still anyway."""
    pytest.importorskip(package, reason="the extra tracking is not installed")
    asked = {
        "mlflow": "from mlflow.telemetry.utils import is_telemetry_disabled as off; print(off())",
        "wandb": "from wandb.env import error_reporting_enabled as on; print(not on())",
    }[package]
    code = f"import fedfm.engines.running as r; r.quiet_libraries(); {asked}"
    hidden = ("PYTEST", "CI", "GITHUB", "MLFLOW", "WANDB", "DO_NOT_TRACK")
    own = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=own, check=True)
    assert found.stdout.strip().splitlines()[-1] == "True", found.stderr


def test_scalars_hold_no_number_that_is_not_finite(tmp_path):
    done = fedfm.run(source(tmp_path))
    assert not (done.folder / "tracking").exists()
    table = scalars_of(trackers.RunFolder.open(done.folder))
    assert all(math.isfinite(value) for values in table.values() for value in values.values())
    assert "round/bytes_up" in table[1]


def test_a_package_that_is_missing_is_told_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(trackers.PACKAGES, "wandb", "no_such_package_here")
    with pytest.raises(ConfigError, match=r"the package no_such_package_here is not installed[\s\S]*fedfm\[tracking\]"):
        fedfm.run(source(tmp_path, "wandb"))
    assert not list(tmp_path.iterdir())
