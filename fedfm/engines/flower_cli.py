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
from http.client import HTTPException
from pathlib import Path
from typing import Literal

import tomli_w

from fedfm.engines import lifeline
from fedfm.errors import EngineError

ConfigValue = str | int | float | bool
START_SECONDS = 60.0
COMMAND_SECONDS = 120.0
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


@dataclass(frozen=True)
class Simulation:
    """`num_nodes` simulated SuperNodes, of which `workers` compute at a time; CPUs and GPUs of one ClientApp."""

    num_nodes: int
    workers: int = 1
    cpus_per_client: int = 1
    gpus_per_client: float = 0.0

    def options(self) -> str:
        """As `--federation-config` wants it. The number of CPUs that Ray may use is what bounds the workers."""
        return (
            f"num-supernodes={self.num_nodes} init-args-num-cpus={self.workers * self.cpus_per_client} "
            f"client-resources-num-cpus={self.cpus_per_client} client-resources-num-gpus={float(self.gpus_per_client)}"
        )


def run_flower_app(
    app_folder: Path,
    run_config: Mapping[str, ConfigValue],
    simulation: Simulation,
    *,
    work_folder: Path,
    threads: int = 1,
    on_poll: Callable[[], None] = lambda: None,
    poll_seconds: float = 0.5,
    start_seconds: float = START_SECONDS,
) -> FlowerOutcome:
    """Run the Flower App in `app_folder` on Flower's simulation.

    `run_config` overrides keys of the app's [tool.flwr.app.config]; texts may have several lines. `on_poll` is called
    every `poll_seconds`; an exception from it, or Ctrl-C, ends the run. ServerApp and ClientApps work in `work_folder`,
    which also keeps `superlink.log` and `run.log`, and take paths that are relative from there.

    Raises EngineError when Flower cannot be started or refuses the app. A run that fails does not raise: see
    `FlowerOutcome`.
    """
    work_folder = work_folder.resolve()
    home = work_folder / "flower"
    home.mkdir(parents=True, exist_ok=True)
    environment = flower_environment(home, threads)
    config_file = home / "run-config.toml"
    config_file.write_text(tomli_w.dumps(dict(run_config)), encoding="utf-8")
    with _superlink(work_folder, home, environment, start_seconds) as superlink:
        command = ["run", str(app_folder.resolve()), "local", "--run-config", str(config_file)]
        run_id = _flwr([*command, "--federation-config", simulation.options()], environment)["run-id"]
        log = work_folder / "run.log"
        record = _follow(run_id, log, superlink, environment, on_poll, poll_seconds)
    detail = record["status-details"].replace("N/A", "")
    return FlowerOutcome(record["status"].removeprefix("finished:"), run_id, detail, log, tail(log))


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
        command = [sys.executable, "-P", lifeline.__file__, _script("flower-superlink"), *arguments]
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
            ended = process.poll()
        finally:
            process.stdin.close()
            process.wait()
        if "address already in use" not in tail(log):
            break
    reason = f"no answer within {start_seconds:g} s" if ended is None else f"exit status {ended}"
    mend = "the lines above name the cause; without any, wait until the machine is less busy"
    raise EngineError(f"Flower's SuperLink did not start ({reason}):\n{tail(log)}", where=str(log), mend=mend)


def _answers(port: int, process: subprocess.Popen, seconds: float) -> bool:
    """Wait for the SuperLink's health page; False when time is over or the process ended."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with opener.open(f"http://127.0.0.1:{port}/health", timeout=1.0):
                return process.poll() is None
        except (OSError, HTTPException):
            time.sleep(0.1)
    return False


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
                    _check_alive(superlink, log.with_name("superlink.log"))
                    on_poll()
                    time.sleep(poll_seconds)
            finally:
                reader.kill()
                reader.wait()
        _check_alive(superlink, log.with_name("superlink.log"))
        record = _flwr(["list", "local", "--run-id", run_id], environment)["runs"][0]
        if record["status"].startswith("finished:"):
            return record


def _check_alive(superlink: subprocess.Popen, log: Path) -> None:
    if superlink.poll() is not None:
        raise EngineError(
            f"Flower's SuperLink ended in the middle of the run (exit status {superlink.returncode}):\n{tail(log)}",
            where=str(log),
            mend="look for the cause in that log; was it killed for memory? then use fewer workers",
        )


def _flwr(arguments: list[str], environment: Mapping[str, str]) -> dict:
    """The answer of a short `flwr` command."""
    command = [_script("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMMAND_SECONDS)
        answer = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        what, mend = f"no answer within {COMMAND_SECONDS:.0f} s", "is the machine overloaded? try with fewer workers"
        raise EngineError(what, where=shlex.join(command), mend=mend) from None
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
