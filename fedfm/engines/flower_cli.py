"""Start a Flower App with `flwr run` on Flower's own simulation, follow it to its end, leave nothing running.

`flwr run` on a `:local:` address leaves a SuperLink behind on a fixed port. Here the SuperLink, the same
`flower-superlink --simulation`, is a child with a port, a home folder and a life of its own: two runs on one machine do
not meet, and nothing below it outlives this process (see `lifeline`). Only Flower's commands are used, none of its
modules.
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
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tomli_w

from fedfm.engines import lifeline
from fedfm.errors import EngineError

ConfigValue = str | int | float | bool
START_SECONDS = 60.0
SUBMIT_SECONDS = 120.0
PORT_TRIES = 3
TAIL_LINES = 40
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


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


def run_flower_app(
    app_folder: Path,
    run_config: Mapping[str, ConfigValue],
    num_nodes: int,
    *,
    work_folder: Path,
    workers: int = 1,
    cpus_per_client: int = 1,
    gpus_per_client: float = 0.0,
    threads: int = 1,
    on_poll: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.5,
    start_seconds: float = START_SECONDS,
) -> FlowerOutcome:
    """Run the Flower App in `app_folder` on `num_nodes` simulated SuperNodes, `workers` of them at a time.

    `run_config` overrides keys of the app's [tool.flwr.app.config]; texts may have several lines. `on_poll` is called
    every `poll_seconds`; an exception from it, or Ctrl-C, ends the run. ServerApp and ClientApps work in `work_folder`
    (an absolute path in `run_config` is safer), which also keeps `superlink.log` and `run.log`.

    Raises EngineError when Flower cannot be started or refuses the app. A run that fails does not raise: see
    `FlowerOutcome`.
    """
    work_folder = work_folder.resolve()
    home = work_folder / "flower"
    home.mkdir(parents=True, exist_ok=True)
    environment = flower_environment(home, threads)
    simulation = {
        "num-supernodes": num_nodes,
        "client-resources-num-cpus": cpus_per_client,
        "client-resources-num-gpus": float(gpus_per_client),
        "init-args-num-cpus": workers * cpus_per_client,
    }
    config_file = home / "run-config.toml"
    config_file.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    with _superlink(work_folder, home, environment, start_seconds) as superlink:
        run_id = _submit(app_folder.resolve(), config_file, simulation, environment)
        log = work_folder / "run.log"
        record = _follow(run_id, log, superlink, environment, on_poll, poll_seconds)
    status = record["status"].removeprefix("finished:")
    detail = record["status-details"].replace("N/A", "")
    return FlowerOutcome(status, run_id, detail, log, tail(log))


def flower_environment(home: Path, threads: int) -> dict[str, str]:
    """The variables for Flower's processes: this interpreter, this home, no network but the loopback."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}  # never another's Ray
    scripts = str(Path(sys.executable).parent)
    without_proxy = ["127.0.0.1", "localhost"]
    for name in ("NO_PROXY", "no_proxy"):
        environment[name] = ",".join([*filter(None, [environment.get(name)]), *without_proxy])
    return environment | {
        "PATH": os.pathsep.join([scripts, environment.get("PATH", os.defpath)]),
        "FLWR_HOME": str(home),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",  # a log that is read while it is written
    }


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, without colours."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(_ANSI.sub("", text).rstrip().splitlines()[-lines:])


@contextmanager
def _superlink(
    work_folder: Path, home: Path, environment: Mapping[str, str], start_seconds: float
) -> Iterator[subprocess.Popen]:
    """A SuperLink with an in-memory state that answers; on the way out it and all that it started are ended."""
    log = work_folder / "superlink.log"
    for _ in range(PORT_TRIES):
        port = _free_port()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        arguments = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, lifeline.__file__, _script("flower-superlink"), *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                env=environment,
                cwd=work_folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for this process, which then ends the others in good order
            )
        try:
            if _answers(port, process, start_seconds):
                yield process
                return
        finally:
            process.stdin.close()
            process.wait()
        if "address already in use" not in tail(log):
            break
    raise EngineError(
        f"Flower's SuperLink did not start within {start_seconds:.0f} s:\n{tail(log)}",
        where=str(log),
        mend="see the lines above; a busy machine needs more time, a used port another run",
    )


def _answers(port: int, process: subprocess.Popen, seconds: float) -> bool:
    """Wait for the SuperLink's health page; False when time is over or the process ended."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return process.poll() is None
        except OSError:
            time.sleep(0.1)
    return False


def _submit(app: Path, config_file: Path, simulation: Mapping[str, ConfigValue], environment: Mapping[str, str]) -> str:
    """Hand the app over; the run's id."""
    options = " ".join(f"{key}={json.dumps(value)}" for key, value in simulation.items())
    command = ["run", str(app), "local", "--run-config", str(config_file), "--federation-config", options]
    return _flwr(command, environment)["run-id"]


def _follow(
    run_id: str,
    log: Path,
    superlink: subprocess.Popen,
    environment: Mapping[str, str],
    on_poll: Callable[[], None],
    poll_seconds: float,
) -> dict[str, str]:
    """Copy the run's log into `log` until the run has ended; Flower's record of the run.

    One `flwr log` waits for the end at no cost, where asking for the status starts an interpreter each time.
    """
    while True:
        with log.open("wb") as output:
            command = [_script("flwr"), "log", run_id, "local"]
            reader = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                while reader.poll() is None:
                    _check_alive(superlink, log)
                    on_poll()
                    time.sleep(poll_seconds)
            finally:
                reader.kill()
                reader.wait()
        _check_alive(superlink, log)
        record = _flwr(["list", "local", "--run-id", run_id], environment)["runs"][0]
        if record["status"].startswith("finished:"):
            return record


def _check_alive(superlink: subprocess.Popen, log: Path) -> None:
    if superlink.poll() is not None:
        raise EngineError(
            f"Flower's SuperLink ended in the middle of the run (exit status {superlink.returncode})\n{tail(log)}",
            where=str(log.with_name("superlink.log")),
            mend="look for the cause in that log; killed for memory? then use fewer workers",
        )


def _flwr(arguments: list[str], environment: Mapping[str, str]) -> dict:
    """The answer of a short `flwr` command."""
    command = [_script("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SUBMIT_SECONDS)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        raise EngineError(f"no answer within {SUBMIT_SECONDS:.0f} s", where=shlex.join(command)) from None
    except json.JSONDecodeError:
        answer = {"error-message": done.stderr or done.stdout}
    if not answer.get("success"):
        reason = _ANSI.sub("", str(answer.get("error-message", answer))).strip()
        raise EngineError(f"flwr refused: {reason}", where=shlex.join(command), mend="correct what it names")
    return answer


def _script(name: str) -> str:
    """Flower's console script beside this interpreter."""
    path = Path(sys.executable).with_name(name)
    if not path.exists():
        mend = 'python -m pip install "flwr[simulation]" into this environment'
        raise EngineError(f'Flower\'s command "{name}" is missing', where=str(path.parent), mend=mend)
    return str(path)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
