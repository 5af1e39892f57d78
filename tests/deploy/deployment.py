"""A federation of real processes on loopback, as in production: TLS, registered keys, process isolation, a database.

    with Deployment(tmp_path) as coordinator:          # SuperLink and SuperExec, which answer
        coordinator.start_site("st-mary", "medical")   # a SuperNode with a key of its own, registered
        done = coordinator.fedfm("run", config, "engine.name=flower", f"engine.superlink={CONNECTION}")

Certificates and keys are made anew, the port is free, Flower's home and all logs lie in the folder. `kill` takes a
process with all below it, as the end of a container does. On the way out everything is ended by its pid; if the test
itself is killed, the kernel ends the daemons (PR_SET_PDEATHSIG), and Flower's own children watch their parents.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import psutil
from certificates import write_certificates, write_site_key

import fedfm
from fedfm.engines.flower_cli import flower_environment, free_port, script, tail

COORDINATOR = "coordinator"  # the host of SuperLink, SuperExec and `fedfm run`
CONNECTION = "hospital-net"  # the SuperLink's name in Flower's config.toml
PATIENCE = 600.0  # seconds; on a busy machine a single message may take a minute
OFFLINE_SECONDS = 75.0  # SuperLink misses a killed node after two heartbeats of 30 s
ROOT = Path(fedfm.__file__).parents[1]


class Deployment:
    """The coordinator's two daemons and any number of sites."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None, host: str = "127.0.0.1"):
        self.folder, self.host = folder, host
        self.home, self.logs, self.keys = folder / "home", folder / "logs", folder / "keys"
        for place in (self.home, self.logs, self.keys):
            place.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"{host}:{self.port}"
        self.certificates = write_certificates(folder / "certificates", ["localhost"], [host])
        self.environment = flower_environment(self.home, threads=1) | {
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
            **(environment or {}),
        }
        self.processes: dict[str, subprocess.Popen] = {}
        self._closed = threading.Event()
        (self.home / "config.toml").write_text(
            f'[superlink]\ndefault = "{CONNECTION}"\n[superlink.{CONNECTION}]\naddress = "{self.address}"\n'
            f'root-certificates = "{self.certificates.ca}"\n',
            encoding="utf-8",
        )

    def __enter__(self) -> Self:
        try:
            self.start_superlink()
            self.start_superexec()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process that works below the folder, by its pid."""
        self._closed.set()
        for name in list(self.processes):
            self.kill(name)
        for process in self.left_over():
            with suppress(psutil.Error):
                process.kill()

    def left_over(self) -> list[psutil.Process]:
        """Living processes whose Flower home is below the folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("FLWR_HOME", "").startswith(str(self.folder)):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    # ---- the coordinator -------------------------------------------------------------------------------------------

    def start_superlink(self) -> None:
        """The SuperLink on its port and database; returns when it answers."""
        c = self.certificates
        self.spawn(
            "superlink", "flower-superlink", "--ssl-certfile", c.certificate, "--ssl-keyfile", c.key,
            "--ssl-ca-certfile", c.ca, "--enable-supernode-auth", "--database", self.folder / "state.db",
            "--disable-runtime-dependency-installation", "--isolation", "process",
            "--host", self.host, "--port", self.port,
        )  # fmt: skip
        self.wait_for(self.answers, "the SuperLink to answer", "superlink")

    def start_superexec(self) -> None:
        """What starts ServerApps at the coordinator, under `restart: always`: it ends at any error of the SuperLink."""
        self._spawn_superexec()
        threading.Thread(target=self._keep_superexec, daemon=True).start()

    def _spawn_superexec(self) -> None:
        address, ca = self.address, self.certificates.ca
        self.spawn("superexec", "flower-superexec", "--runtime-api-address", address, "--root-certificates", ca)

    def _keep_superexec(self) -> None:
        while not self._closed.wait(1.0):
            process = self.processes.get("superexec")
            if process is not None and process.poll() is not None:
                self._spawn_superexec()

    def answers(self) -> bool:
        """Does the SuperLink say that it is well?"""
        context = ssl.create_default_context(cafile=str(self.certificates.ca))
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        try:
            with opener.open(f"https://{self.address}/health", timeout=2.0) as reply:
                return reply.status == 200
        except OSError:
            return False

    def flwr(self, *arguments: str | Path) -> dict[str, Any]:
        """The answer of a `flwr` command."""
        command = [*self.on(COORDINATOR), script("flwr"), *map(str, arguments), "--format", "json"]
        done = subprocess.run(
            command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE
        )
        answer = json.loads(done.stdout)
        assert answer["success"], answer
        return answer

    def register(self, site: str) -> Path:
        """Make a key for a site and register its public half; the private one."""
        private, public = write_site_key(self.keys / site)
        self.flwr("supernode", "register", public, CONNECTION)
        return private

    def online(self) -> int:
        """How many SuperNodes the SuperLink sees."""
        nodes = self.flwr("supernode", "list", CONNECTION)["nodes"]
        return sum(node["status"] == "online" for node in nodes)

    def start_fedfm(self, *arguments: str | Path, under: Sequence[str] = ()) -> subprocess.Popen:
        """`fedfm ARGUMENTS` at the coordinator; its output is kept for `communicate`. `under`: words before it."""
        command = [*self.on(COORDINATOR), *under, sys.executable, "-m", "fedfm", *map(str, arguments)]
        return subprocess.Popen(
            command, env=self.environment, cwd=self.folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            preexec_fn=_heed_ctrl_c,
        )  # fmt: skip

    def fedfm(self, *arguments: str | Path, under: Sequence[str] = ()) -> subprocess.CompletedProcess:
        """`fedfm ARGUMENTS` to its end."""
        with self.start_fedfm(*arguments, under=under) as process:
            try:
                output, errors = process.communicate(timeout=PATIENCE)
            except BaseException:
                process.kill()
                raise
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    # ---- sites -----------------------------------------------------------------------------------------------------

    def start_site(self, site: str, domain: str, key: Path | None = None, **settings: str) -> subprocess.Popen:
        """A SuperNode for a site; without `key`, the one that it was registered with, or a new one."""
        key = key or (self.keys / site if (self.keys / site).exists() else self.register(site))
        node = {"site": site, "domain": domain, **settings}
        return self.spawn(
            site, "flower-supernode", "--superlink", self.address, "--root-certificates", self.certificates.ca,
            "--auth-supernode-private-key", key, "--host", "127.0.0.1", "--port", free_port(),
            "--node-config", " ".join(f'{name}="{value}"' for name, value in node.items()),
        )  # fmt: skip

    # ---- processes -------------------------------------------------------------------------------------------------

    def on(self, name: str) -> list[str]:
        """The words before a command that is to run on the host of a process of that name; here there is one host."""
        return []

    def spawn(self, name: str, command: str, *arguments: object, environment: Mapping[str, str] | None = None):
        """One of Flower's daemons, or `fedfm`; its output is appended to logs/`name`.log."""
        with (self.logs / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                [*self.on(name), script(command), *map(str, arguments)], env=self.environment | dict(environment or {}),
                cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_die_with_parent,
            )  # fmt: skip
        return self.processes[name]

    def kill(self, name: str) -> None:
        """SIGKILL to a process and all below it, as when a container ends."""
        process = self.processes.pop(name)
        below = []
        with suppress(psutil.NoSuchProcess):
            below = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in below:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.wait()

    def log(self, name: str, lines: int = 40) -> str:
        """The end of a process's log."""
        return tail(self.logs / f"{name}.log", lines)

    def wait_for(self, moment: Callable[[], Any], what: str, log: str = "", seconds: float = PATIENCE) -> Any:
        """Until `moment()` is true; its value. Fails with the end of the log of that name."""
        deadline = time.monotonic() + seconds
        while not (value := moment()):
            process = self.processes.get(log)
            ended = process is not None and process.poll() is not None
            assert not ended, f"{log} ended while waiting for {what}:\n{self.log(log)}"
            assert time.monotonic() < deadline, f"waited {seconds:.0f} s for {what}\n{self.log(log) if log else ''}"
            time.sleep(0.1)
        return value


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell starts what goes in its background with SIGINT ignored


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


assert os.name == "posix", "deployments are tested on Linux"
