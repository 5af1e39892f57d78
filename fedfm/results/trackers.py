"""What other programs are told of a run: TensorBoard, MLflow with a local store, Weights & Biases offline.

A tracker is told the rows of `metrics.csv` and `rounds.csv` that it has not been told yet, after each round and at the
end; `tracking/state.json` says how far it is, so that a resumed run goes on where it stopped. No tracker is imported
unless a run asks for it, and none reaches out of this machine: what they would tell their makers is switched off by
`quiet_libraries` before they are imported.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from fedfm.config import RunConfig
from fedfm.errors import Problem
from fedfm.results.files import json_lines, replace_text
from fedfm.results.run_folder import Listen, RunFolder

PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow", "wandb": "wandb"}


class Tracker(Protocol):
    """`log` takes the scalars of a round; `state`, what a resumed run needs to go on in the same place."""

    state: dict[str, Any]

    def log(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class TensorBoard:
    """Event files in `<run>/tracking/tensorboard`: `tensorboard --logdir` on a folder of runs shows them all."""

    def __init__(self, folder: RunFolder, config: RunConfig, state: dict[str, Any]):
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self.state = state
        self._writer = EventFileWriter(str(folder.path / "tracking" / "tensorboard"))

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        import time

        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        self._writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class MLflow:
    """A run in the local store `<runs.folder>/mlruns`, with the configuration as its parameters."""

    def __init__(self, folder: RunFolder, config: RunConfig, state: dict[str, Any]):
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder of files is all that a run needs
        from mlflow import MlflowClient

        self.client = MlflowClient(tracking_uri=(folder.path.parent / "mlruns").resolve().as_uri())
        self.state = state
        if "run" not in state:
            name = config.tracking.project
            known = self.client.get_experiment_by_name(name)
            experiment = known.experiment_id if known else self.client.create_experiment(name)
            state["run"] = self.client.create_run(experiment, run_name=folder.path.name).info.run_id
            for key, value in flat(config.to_dict()).items():
                self.client.log_param(state["run"], key, str(value)[:500])

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, 0, step) for name, value in scalars.items()]
        self.client.log_batch(self.state["run"], metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.state["run"])


class WandB:
    """An offline run in `<run>/tracking/wandb`; `wandb sync` sends it where its user wants it.

    Of a run that went on after a stop there are several, of one id, and what is sent later takes the place of what was
    there (https://github.com/wandb/wandb/issues/3841): each is therefore told everything from round 0 on.
    """

    def __init__(self, folder: RunFolder, config: RunConfig, state: dict[str, Any]):
        import wandb

        for told in ("round", "tested"):
            state.pop(told, None)

        place = folder.path / "tracking"
        place.mkdir(parents=True, exist_ok=True)
        self.state = state
        state.setdefault("run", folder.path.name[-6:])
        self.run = wandb.init(
            project=config.tracking.project, id=state["run"], name=folder.path.name, dir=place, mode="offline",
            config=config.to_dict(), settings=wandb.Settings(silent=True, console="off"),
        )  # fmt: skip

    def log(self, step: int, scalars: Mapping[str, float]) -> None:
        if step < self.state.get("round", -1):  # the test of an earlier, better round: no step may be before another
            self.run.summary.update(dict(scalars))
        else:
            self.run.log(dict(scalars), step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[str, Callable[[RunFolder, RunConfig, dict[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": WandB,
}


def check_trackers(config: RunConfig) -> list[Problem]:
    """Which of [tracking] to this installation lacks: a check for `load_config`."""
    missing = [name for name in config.tracking.to if importlib.util.find_spec(PACKAGES[name]) is None]
    mend = 'pip install "fedfm[tracking]", or leave it out of tracking.to'
    return [Problem(f"the package {PACKAGES[name]} is not installed", "tracking.to", mend) for name in missing]


@contextmanager
def tracked(folder: RunFolder, config: RunConfig, listen: Listen) -> Iterator[Listen]:
    """The listener of a run that also tells its trackers; `listen` itself where there are none."""
    if not config.tracking.to:
        yield listen
        return
    file = folder.path / "tracking" / "state.json"
    states = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    trackers = {name: TRACKERS[name](folder, config, states.setdefault(name, {})) for name in config.tracking.to}

    def hear(event: dict[str, Any]) -> None:
        listen(event)
        if event.get("event") in ("round-finished", "run-finished"):
            for tracker in trackers.values():
                _tell(tracker, folder, with_test=event["event"] == "run-finished")
            replace_text(file, json_lines(states))

    file.parent.mkdir(exist_ok=True)
    try:
        yield hear
    finally:
        for tracker in trackers.values():
            tracker.close()


def _tell(tracker: Tracker, folder: RunFolder, with_test: bool) -> None:
    last = tracker.state.get("round", -1)
    table = scalars_of(folder)
    for step in sorted(number for number in table if number > last):
        tracker.log(step, {name: v for name, v in table[step].items() if not name.startswith("test/")})
        tracker.state["round"] = step
    if with_test and not tracker.state.get("tested"):
        for step, values in table.items():  # one round has them: the last, or with early stopping the best
            if tests := {name: v for name, v in values.items() if name.startswith("test/")}:
                tracker.log(step, tests)
        tracker.state["tested"] = True


def scalars_of(folder: RunFolder) -> dict[int, dict[str, float]]:
    """Round -> name -> value: `<split>/<domain>/<metric>`, `.../<site>/<metric>`, `round/seconds`; finite ones only.

    Scores of the sites' own models have `personal/` before the metric.
    """
    found: dict[int, dict[str, float]] = {}
    for row in folder.metrics.itertuples():
        place = {"site": [row.domain, row.name], "domain": [row.domain], "federation": []}[row.scope]
        own = ["personal"] if row.model == "personal" else []
        found.setdefault(int(row.round), {})["/".join([row.split, *place, *own, row.metric])] = float(row.value)
    for row in folder.rounds.to_dict("records"):
        number = int(row.pop("round"))
        found.setdefault(number, {}).update({f"round/{name}": float(value) for name, value in row.items()})
    return {
        number: {name: value for name, value in values.items() if math.isfinite(value)}
        for number, values in found.items()
    }


def flat(table: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    rows: dict[str, Any] = {}
    for key, value in table.items():
        rows |= flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {_plain(f"{path}{key}"): value}
    return rows


def _plain(key: str) -> str:
    """A name that every tracker takes."""
    return "".join(sign if sign.isalnum() or sign in "_-./ " else "_" for sign in key)
