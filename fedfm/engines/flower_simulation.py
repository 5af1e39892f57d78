"""A Flower App on Flower's own simulation: start it, follow it to its end, leave nothing running.

`flwr run` on a `:local:` address leaves a SuperLink behind on a fixed port. Here the SuperLink, the same
`flower-superlink --simulation`, is a child with a port, a home folder and a life of its own: two runs on one machine do
not meet, and nothing below it outlives this process (see `lifeline`).
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from fedfm.engines import flower_cli, lifeline
from fedfm.engines.flower_cli import ConfigValue, FlowerOutcome, SuperLink, flower_environment, free_port, tail
from fedfm.errors import EngineError

START_SECONDS = 60.0
PORT_TRIES = 3


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
    log = work_folder / "run.log"
    with _superlink(work_folder, home, environment, start_seconds) as process:

        def poll() -> None:
            _check_alive(process, work_folder / "superlink.log")
            on_poll()

        superlink = SuperLink("local", environment)
        options = "--federation-config", simulation.options()
        run_id = superlink.submit(app_folder, run_config, home / "run-config.toml", *options)
        return superlink.follow(run_id, log, poll, poll_seconds)


@contextmanager
def _superlink(
    work_folder: Path, home: Path, environment: Mapping[str, str], start_seconds: float
) -> Iterator[subprocess.Popen]:
    """A SuperLink with an in-memory state that answers; on the way out it and all that it started are ended."""
    log = work_folder / "superlink.log"
    for _ in range(PORT_TRIES):
        port = free_port()
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "local"\n[superlink.local]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
        )
        arguments = ["--insecure", "--simulation", "--host", "127.0.0.1", "--port", str(port)]
        command = [sys.executable, "-P", lifeline.__file__, flower_cli.script("flower-superlink"), *arguments]
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


def _check_alive(superlink: subprocess.Popen, log: Path) -> None:
    if superlink.poll() is not None:
        raise EngineError(
            f"Flower's SuperLink ended in the middle of the run (exit status {superlink.returncode}):\n{tail(log)}",
            where=str(log),
            mend="look for the cause in that log; was it killed for memory? then use fewer workers",
        )
