"""`fedfm site run`: a Flower SuperNode and the worker beside it, as a site's settings want them.

The SuperNode holds the connection to the coordinator; the worker plays its messages with the fedfm installed here (see
`federation/site_worker.py`). They talk over a port of loopback and a secret in a file; the site opens no other port.
Both run below a lifeline, so that nothing outlives this process. What ended is not restarted here: that is systemd's or
the container's part, and an end comes with a sentence and an exit code. Only a SuperNode that is out of step is.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedfm.config.site import SiteSettings
from fedfm.engines import lifeline
from fedfm.engines.flower_cli import flower_environment, free_port, script, without_colours
from fedfm.engines.reaching import Answered, ask
from fedfm.errors import EngineError, FedfmError, UserError
from fedfm.federation.auditing import note_start

WAIT_SECONDS = 5.0  # between two looks for a coordinator that is away
SAY_AGAIN_SECONDS = 600.0
TAIL_LINES = 60
Say = Callable[[str], None]

# What Flower 1.41 says when a run is stopped between the parts of a message. It has given the message to the worker all
# the same; once the answer of a dead run lies there, it sends for each message to come the answer to the one before.
OUT_OF_STEP = re.compile(r"not in `RUNNING` status\. Ignoring message")

ENDINGS = (  # what the SuperNode's last lines hold -> what it means, how to mend it, will a later start work?
    (r"code: 2001", "this site showed no key, and the coordinator wants one", "set coordinator.private-key", False),
    (r"code: 2004", "the coordinator does not let this site in: its key is not registered, or another process uses it, "
     "or this site was killed less than a minute ago",
     "after a kill, start again in a minute; else stop the other process, or have the key registered", True),
    (r"CERTIFICATE_VERIFY_FAILED|certificate verify failed", "the coordinator's certificate is not trusted here",
     "fedfm site check says why", False),
    (r"Exit Code: 302", "the private key is no EC key", "ssh-keygen -t ecdsa -b 384", False),
    (r"Exit Code: 606", "the coordinator has another version of Flower", "install the same fedfm on both sides", False),
    (r"does not recognize this SuperNode|401 Unauthorized",
     "the coordinator has taken this site off its list", "ask its administrator why", True),
)  # fmt: skip


def run_site(settings: SiteSettings, file: Path, say: Say) -> None:
    """Take part in the coordinator's runs until SIGTERM or Ctrl-C. `file`: the site.toml that `settings` come from.

    A coordinator that is away is waited for. Raises UserError where waiting mends nothing, EngineError when one of the
    two processes ended.
    """
    home = Path(settings.state) / "flower"
    with _stoppable() as stopped, only_for_this_user(Path(settings.state), say):
        home.mkdir(parents=True, exist_ok=True)
        wait_for_coordinator(settings, say, stopped)
        if not stopped.is_set():
            _run_processes(settings, file, home, say, stopped)
    say("stopped")


@contextmanager
def only_for_this_user(state: Path, say: Say) -> Iterator[None]:
    """Nobody else may read what a site keeps, and what its processes write from now on."""
    before = os.umask(0o077)
    try:
        state.mkdir(parents=True, exist_ok=True)
        try:
            state.chmod(0o700)
        except OSError as error:  # a mounted folder that is its group's to write
            say(f"who else may read {state} is for its owner to say: {error.strerror}")
        yield
    finally:
        os.umask(before)


def wait_for_coordinator(settings: SiteSettings, say: Say, stopped: threading.Event) -> None:
    """Until the coordinator answers, or `stopped`. Raises UserError for what no waiting mends."""
    where, told, told_at = settings.coordinator.address, "", -SAY_AGAIN_SECONDS
    while not stopped.is_set():
        answer: Answered = ask(settings.coordinator)
        if answer.state == "wrong":
            raise UserError(answer.found, where=f"coordinator {where}", mend=answer.mend)
        if answer.state == "ok":
            say(f"the coordinator {where} answers")
            return
        if answer.found != told or time.monotonic() - told_at > SAY_AGAIN_SECONDS:
            say(f"waiting for the coordinator {where}: {answer.found}")
            told, told_at = answer.found, time.monotonic()
        stopped.wait(WAIT_SECONDS)


def _run_processes(settings: SiteSettings, file: Path, home: Path, say: Say, stopped: threading.Event) -> None:
    environment = flower_environment(home, threads=1)
    note_start(settings, environment)
    while not stopped.is_set():
        address, secret = f"127.0.0.1:{free_port()}", _new_secret(home)
        node = Child("SuperNode", supernode_command(settings, file, address, secret), environment, home)
        worker = Child("worker", worker_command(address, secret), environment, home)
        broken = None
        try:
            while not (broken or node.is_out_of_step or stopped.wait(0.2)):
                if node.ended or worker.ended:
                    broken = node if node.ended_first(worker) else worker
        finally:
            for child in (node, worker):
                child.end()
        if broken and not stopped.is_set():
            raise _explained(broken, settings)
        if node.is_out_of_step:
            say("a run was stopped while its message came in: the SuperNode starts anew")


def supernode_command(settings: SiteSettings, file: Path, address: str, secret: Path) -> list[str]:
    """The words that start Flower's SuperNode for a site. `address`: of its own Runtime API, on loopback."""
    link = settings.coordinator
    host, _, port = address.rpartition(":")
    node = {"site": settings.site, "domain": settings.domain, "settings": str(file.resolve())}
    return [
        script("flower-supernode"), "--superlink", link.address, "--root-certificates", link.root_certificates,
        "--auth-supernode-private-key", link.private_key, "--isolation", "process",
        "--superexec-auth-secret-file", str(secret), "--host", host, "--port", port,
        "--node-config", " ".join(f'{name}="{value}"' for name, value in node.items()),
    ]  # fmt: skip


def worker_command(address: str, secret: Path) -> list[str]:
    """The words that start the worker beside a SuperNode."""
    return [sys.executable, "-P", "-m", "fedfm.federation.site_worker", address, str(secret)]


class Child:
    """A process below a lifeline, whose output goes on to this one's and whose last lines are kept."""

    def __init__(self, name: str, command: Sequence[str], environment: dict[str, str], folder: Path):
        self.name = name
        self.lines: deque[str] = deque(maxlen=TAIL_LINES)
        self.end_time = float("inf")
        self.is_out_of_step = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", lifeline.__file__, *command], env=environment, cwd=folder, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._pass_on, daemon=True)
        self._reader.start()

    @property
    def ended(self) -> bool:
        if self.process.poll() is None:
            return False
        self.end_time = min(self.end_time, time.monotonic())
        return True

    def ended_first(self, other: Child) -> bool:
        return self.end_time <= other.end_time

    def end(self) -> None:
        """Ask it and all below it to end, and wait until they have."""
        self.process.stdin.close()
        self.process.wait()
        self._reader.join(timeout=5.0)
        if not self._reader.is_alive():  # else something still holds the other end, and to close would wait for it
            self.process.stdout.close()

    def _pass_on(self) -> None:
        for line in self.process.stdout:
            self.lines.append(line)
            self.is_out_of_step |= OUT_OF_STEP.search(line) is not None
            sys.stdout.write(line)
            sys.stdout.flush()


def _explained(child: Child, settings: SiteSettings) -> FedfmError:
    """Why a process ended, from its last lines."""
    text, where = without_colours("".join(child.lines)), f"coordinator {settings.coordinator.address}"
    for pattern, what, mend, is_passing in ENDINGS:
        if re.search(pattern, text):
            return (EngineError if is_passing else UserError)(what, where=where, mend=mend)
    status = child.process.returncode
    what = f"the site's {child.name} ended (exit status {status})"
    return EngineError(what, mend="its last lines above name the cause; was it killed for memory?")


def _new_secret(home: Path) -> Path:
    """A file that only this user can read, anew at every start: who has it may take this site's messages."""
    file = home / "superexec.secret"
    file.unlink(missing_ok=True)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        stream.write(secrets.token_bytes(32))
    return file


@contextmanager
def _stoppable() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set, in place of ending this process."""
    stopped = threading.Event()
    before = {number: signal.signal(number, lambda *_: stopped.set()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
