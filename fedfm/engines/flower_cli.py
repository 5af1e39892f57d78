"""Flower's commands, as the two ways to a SuperLink use them: submit a run, follow it to its end, stop it.

Only Flower's commands are used, none of its modules. A SuperLink of our own for a simulation is in `flower_simulation`,
one that is there for sites across machines in `flower_deployment`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w

from fedfm.errors import EngineError

ConfigValue = str | int | float | bool
COMMAND_SECONDS = 120.0
TAIL_LINES = 40
AWAY = "Connection to the SuperLink is unavailable"  # as Flower says it
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class AwayError(EngineError):
    """The SuperLink does not answer, now."""


@dataclass(frozen=True)
class FlowerOutcome:
    """How a run ended: `detail` is Flower's own sentence, `log_tail` the end of the run's log, in `log` as a whole."""

    status: Literal["completed", "failed", "stopped"]
    run_id: str
    detail: str
    log: Path
    log_tail: str

    def raise_if_unfinished(self) -> None:
        """Raises EngineError unless the run was completed."""
        if self.status != "completed":
            what = f"the Flower run {self.status}: {self.detail or 'no reason given'}\n{self.log_tail}"
            raise EngineError(what, where=str(self.log), mend="the last lines above name the cause")


@dataclass(frozen=True)
class SuperLink:
    """A SuperLink by its name in Flower's config.toml; `environment` says where that lies (FLWR_HOME)."""

    name: str
    environment: Mapping[str, str]

    def submit(self, app_folder: Path, run_config: Mapping[str, ConfigValue], file: Path, *options: str) -> str:
        """Hand in the Flower App in `app_folder`; the id of its run.

        `run_config` overrides keys of the app's [tool.flwr.app.config]; texts may have several lines, and lie in
        `file`. Raises EngineError when Flower refuses the app or does not answer.
        """
        file.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
        words = "run", str(app_folder.resolve()), self.name, "--run-config", str(file), *options
        return self._ask(*words, if_interrupted=lambda answer: self.stop(answer["run-id"]))["run-id"]

    def record(self, run_id: str) -> dict[str, Any]:
        """Flower's record of a run: status, status-details, ..."""
        return self._ask("list", self.name, "--run-id", run_id)["runs"][0]

    def stop(self, run_id: str) -> None:
        """End a run: its ServerApp is killed, and no site gets another message of it."""
        self._ask("stop", run_id, self.name)

    def follow(
        self, run_id: str, log: Path, on_poll: Callable[[], None], poll_seconds: float, patience: float = 0.0
    ) -> FlowerOutcome:  # fmt: skip
        """Copy the run's log into `log` until the run has ended; `on_poll` is called every `poll_seconds`.

        One `flwr log` waits for the end at no cost, where asking for the status starts an interpreter each time. For
        `patience` seconds it is borne that the SuperLink does not answer.
        """
        heard = time.monotonic()
        while True:
            self._copy_log(run_id, log, on_poll, poll_seconds)
            on_poll()
            try:
                record = self.record(run_id)
            except AwayError:
                if time.monotonic() - heard > patience:
                    raise
                continue
            heard = time.monotonic()
            if record["status"].startswith("finished:"):
                detail = record["status-details"].replace("N/A", "")
                return FlowerOutcome(record["status"].removeprefix("finished:"), run_id, detail, log, tail(log))

    def _copy_log(self, run_id: str, log: Path, on_poll: Callable[[], None], poll_seconds: float) -> None:
        with log.open("wb") as output:
            command = [script("flwr"), "log", run_id, self.name]
            reader = subprocess.Popen(
                command, env=self.environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                while reader.poll() is None:
                    on_poll()
                    time.sleep(poll_seconds)
            finally:
                reader.kill()
                reader.wait()

    def _ask(
        self, *arguments: str, if_interrupted: Callable[[dict[str, Any]], None] = lambda answer: None
    ) -> dict[str, Any]:  # fmt: skip
        """The answer of a short `flwr` command, which Ctrl-C does not cut in two. Raises EngineError."""
        command = [script("flwr"), *arguments, "--format", "json"]
        process = subprocess.Popen(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,  # Ctrl-C is for this process: a run must not be handed in and its id lost
        )  # fmt: skip
        try:
            output, errors = process.communicate(timeout=COMMAND_SECONDS)
            return self._read(output, errors, command)
        except KeyboardInterrupt:
            output, errors = process.communicate(timeout=COMMAND_SECONDS)
            if_interrupted(self._read(output, errors, command))
            raise
        except subprocess.TimeoutExpired:
            what, mend = f"no answer within {COMMAND_SECONDS:.0f} s", "is the machine overloaded? try fewer workers"
            raise AwayError(what, where=shlex.join(command), mend=mend) from None
        finally:
            process.kill()
            process.wait()

    def _read(self, output: str, errors: str, command: Sequence[str]) -> dict[str, Any]:
        try:
            answer = json.loads(output)
        except json.JSONDecodeError:
            answer = {"error-message": errors or output}
        if not answer.get("success"):
            reason = without_colours(str(answer.get("error-message", answer))).strip()
            if AWAY in reason:
                mend = "is flower-superlink running, is the address right, and is its certificate signed by the "
                mend += f"authority in root-certificates? Ask it: flwr supernode list {self.name}"
                raise AwayError(f'the SuperLink "{self.name}" cannot be reached: {reason}', mend=mend)
            raise EngineError(f"flwr refused: {reason}", where=shlex.join(command), mend="correct what it names")
        return answer


def flower_environment(home: Path, threads: int) -> dict[str, str]:
    """The variables of Flower's processes: this interpreter, this home, no network but the loopback.

    The caller's own HF_* variables stand, so that someone who wants a model hub can have it.
    """
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # never another's Ray
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    without_proxy = {
        name: ",".join(filter(None, [inherited.get(name), "127.0.0.1", "localhost"]))
        for name in ("NO_PROXY", "no_proxy")
    }
    own = {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), inherited.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",  # the logs are read while they are written
        "OMP_NUM_THREADS": str(threads),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }
    return offline | inherited | without_proxy | own


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colours."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(without_colours(text).rstrip().splitlines()[-lines:])


def script(name: str) -> str:
    """Flower's console script beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        mend = 'python -m pip install "flwr[simulation]" into this environment'
        raise EngineError(f'Flower\'s command "{name}" is missing', where=str(path.parent), mend=mend)
    return str(path)


def free_port() -> int:
    """A port of loopback that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def without_colours(text: str) -> str:
    """What a program of Flower's printed, as plain text."""
    return _ANSI.sub("", text)
