"""What does a real site's work: it takes messages from the site's SuperNode and plays each in a process of its own.

    python -m fedfm.federation.site_worker ADDRESS SECRET_FILE

It stands in the place of Flower's SuperExec, which starts an interpreter for every message, unpacks the run's bundle
and imports the app from it. Here

- code comes from this installation and from nowhere else: a bundle is looked at, never unpacked. One that carries code,
  or names other components, gets an error reply with the reason; so does every task that is no ClientApp (Flower also
  knows agents, connectors, models: a run that is one would have its code run at the sites);
- libraries are imported once: a message is played in a fork of this process, which takes milliseconds. What a message
  leaves in memory still ends with it.

Flower's trusted entities (`flower-supernode --trusted-entities`) are not used. They say who has signed a bundle, not
what is in it, and signatures come only with bundles that SuperLink fetches from Flower's hub over the internet: one
that is handed in from a folder, as every run of fedfm is, has none, and with them on each of its messages would be
refused. Here no bundle's code runs, signed or not.
"""

from __future__ import annotations

import os
import select
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from fedfm.config import RunConfig
from fedfm.federation.auditing import note_refusal
from fedfm.federation.bundle import faults_of_bundle
from fedfm.federation.flower_private import Tasks, play

POLL_SECONDS = 0.2
PULL_SECONDS = 10.0  # after which a task that has no message keeps no other waiting
CLIENT_TASK = "flwr-clientapp"
INVALID_BUNDLE = 7  # of Flower's error codes
WARM = (  # what messages import, so that they need not
    "flwr.supernode.runtime.run_clientapp", "fedfm.federation.client_app", "fedfm.models.body", "fedfm.models.features",
    "fedfm.models.feature_files", "fedfm.models.frozen", "fedfm.models.site_model", "fedfm.training.evaluation",
    "fedfm.training.fit", "fedfm.training.local_round", "fedfm.training.matrix", "safetensors.numpy",
)  # fmt: skip


def work(address: str, secret: bytes) -> None:
    """Take and play messages for ever. `address`: of the SuperNode's Runtime API, host:port on loopback."""
    for name in WARM:
        import_module(name)
    _load_a_body()
    tasks = Tasks(address, secret)
    print("fedfm: ready to work", flush=True)
    played: list[Played] = []
    while True:
        played = [one for one in played if not one.ended()]
        task = None if any(one.is_busy for one in played) else tasks.take()
        if task is None:
            time.sleep(POLL_SECONDS)  # SuperNode hands out one message at a time, and itself asks every 3 s
        else:
            played.append(Played(address, *task))


class Played:
    """A task in a fork of this process.

    It gets its message first, and that may never come: when a run ends at the coordinator, what was on its way to a
    site stays away, and Flower asks for it for two hours. A task that waits for its message does not keep the next
    one, which may be of the next run, from being played.
    """

    def __init__(self, address: str, kind: str, token: str):
        sys.stdout.flush()
        self.started = time.monotonic()
        self._has_message, told = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            _play_and_exit(address, kind, token, told)
        os.close(told)

    @property
    def is_busy(self) -> bool:
        is_young = time.monotonic() - self.started < PULL_SECONDS
        return is_young or bool(select.select([self._has_message], [], [], 0)[0])

    def ended(self) -> bool:
        """Is it over? Asked once after that: how it ended is then told, and nothing of it is left."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if not pid:
            return False
        os.close(self._has_message)
        if os.WIFSIGNALED(status):
            signal = os.WTERMSIG(status)
            _say(f"a message was ended by signal {signal}{': was it killed for memory?' if signal == 9 else ''}")
        return True


def _load_a_body() -> None:
    """The built-in one: much of torch and transformers is imported only when a model is made, 4 s of work."""
    import torch

    from fedfm.models.body import load_body

    torch.set_num_threads(1)  # one more would be a thread of this process, which forks
    load_body(RunConfig())


def app_for(kind: str, bundle: bytes) -> ClientApp:
    """The installed fedfm's app, or one that refuses every message with the reason."""
    faults = faults_of_bundle(bundle)
    if kind != CLIENT_TASK:
        faults.insert(0, f"the task is a {kind}, and a site plays no other than its ClientApp")
    if faults:
        return _refusing(f"the site runs only the code of its own fedfm, and refuses this bundle: {'; '.join(faults)}")
    from fedfm.federation.client_app import app

    return app


def _refusing(reason: str) -> ClientApp:
    def refuse(message: Message, context: Context) -> Message:
        _say(f"refused a {message.metadata.message_type} message of run {context.run_id}: {reason}")
        note_refusal(message, context, reason)
        return Message(Error(INVALID_BUNDLE, reason), reply_to=message)

    app = ClientApp()
    for kind in (app.train, app.evaluate, app.query):
        kind()(refuse)
    return app


def _play_and_exit(address: str, kind: str, token: str, told: int) -> NoReturn:
    """The child's part: play one task, and write to the pipe `told` when it has its message."""

    def app(bundle: bytes) -> ClientApp:
        os.write(told, b"m")
        return app_for(kind, bundle)

    code = 1
    try:
        play(address, token, app)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what is the parent's to clean up is not the child's


def _say(words: str) -> None:
    print(f"fedfm: {words}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]).read_bytes())
