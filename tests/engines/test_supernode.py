"""`fedfm site run` and its two processes: what ends with what, and the one thing that is started anew."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace

import pytest

from fedfm.engines import supernode
from fedfm.errors import EngineError

RUN = "9239147640693751307"
LATE = f"INFO :      Run ID {RUN} is not in `RUNNING` status. Ignoring message 3355a97d."  # as Flower 1.41 prints it
LATE_REPLY = f"INFO :      Run ID {RUN} is not in `RUNNING` status. Ignoring reply message 722593e4."
SITE = SimpleNamespace(coordinator=SimpleNamespace(address="127.0.0.1:9"))


def play(tmp_path, monkeypatch, scripts: list[str], worker: str = "import time; time.sleep(60)"):
    """The sentences that were said, while SuperNodes ran these scripts, one for each start; the last start stops it."""
    said, starts, stopped = [], [], threading.Event()

    def command(settings, file, address, secret):
        assert secret.stat().st_mode & 0o077 == 0
        starts.append((address, secret.read_bytes()))
        if len(starts) == len(scripts):
            threading.Timer(1.0, stopped.set).start()
        return [sys.executable, "-c", scripts[len(starts) - 1]]

    monkeypatch.setattr(supernode, "supernode_command", command)
    monkeypatch.setattr(supernode, "worker_command", lambda address, secret: [sys.executable, "-c", worker])
    monkeypatch.setattr(supernode, "note_start", lambda settings, environment: None)
    try:
        supernode._run_processes(SITE, tmp_path / "site.toml", tmp_path, said.append, stopped)
    finally:
        stopped.set()
    return said, starts


def test_a_supernode_that_is_out_of_step_starts_anew(tmp_path, monkeypatch):
    """It has the answer of a dead run in hand, and would send each later answer one message too late."""
    wait = "import time; time.sleep(60)"
    said, starts = play(tmp_path, monkeypatch, [f"print({LATE!r}, flush=True); {wait}", wait])
    assert said == ["a run was stopped while its message came in: the SuperNode starts anew"]
    (_, first), (_, second) = starts
    assert first != second  # the worker of before has no way in


def test_an_answer_that_nobody_wants_any_more_starts_nothing_anew(tmp_path, monkeypatch):
    said, starts = play(tmp_path, monkeypatch, [f"print({LATE_REPLY!r}, flush=True); import time; time.sleep(60)"])
    assert said == [] and len(starts) == 1


def test_a_supernode_that_ends_is_not_started_again(tmp_path, monkeypatch):
    with pytest.raises(EngineError, match=r"the site's SuperNode ended \(exit status 3\)"):
        play(tmp_path, monkeypatch, ["raise SystemExit(3)", ""])
    with pytest.raises(EngineError, match=r"the site's worker ended \(exit status 4\)"):
        play(tmp_path, monkeypatch, ["import time; time.sleep(60)", ""], worker="raise SystemExit(4)")
