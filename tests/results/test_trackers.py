"""Trackers are told what the tables hold, once, also by a run that was stopped and went on."""

from __future__ import annotations

import math
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
