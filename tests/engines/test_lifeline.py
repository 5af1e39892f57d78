"""A command ends with the pipe that holds it, and takes along what it started, however detached."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fedfm.engines import lifeline

GRANDCHILD = "import time; time.sleep(60)"
CHILD = f"""
import subprocess, sys, time
detached = subprocess.Popen([sys.executable, "-c", {GRANDCHILD!r}], start_new_session=True)
print(detached.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"


def hold(code: str, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-P", lifeline.__file__, sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_until_gone(pid: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.05)


@pytest.mark.parametrize("kill_holder", [False, True])
def test_all_end_when_the_pipe_closes(kill_holder: bool, tmp_path: Path) -> None:
    """`kill_holder`: the pipe's writer is a process that is killed without a chance to clean up."""
    if kill_holder:
        holder_code = (
            "import subprocess, sys, time\n"
            "held = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\n"
            "print(held.pid, flush=True); time.sleep(60)"
        )
        command = [sys.executable, "-P", lifeline.__file__, sys.executable, "-c", CHILD, "60"]
        holder = subprocess.Popen([sys.executable, "-c", holder_code, *command], stdout=subprocess.PIPE, text=True)
        pids = {int(holder.stdout.readline()), int(holder.stdout.readline())}
        holder.kill()
    else:
        holder = hold(CHILD, "60")
        pids = {holder.pid, int(holder.stdout.readline())}
        holder.stdin.close()
    for pid in pids:
        wait_until_gone(pid)
    holder.wait()
    holder.stdout.close()


def test_orphans_end_with_the_command() -> None:
    """The command ends by itself and leaves a detached process behind; its exit status comes through."""
    with hold(CHILD + "sys.exit(3)", "1.5") as process:
        orphan = int(process.stdout.readline())
        assert process.wait(timeout=20) == 3
    wait_until_gone(orphan)


def test_who_ignores_sigterm_is_killed() -> None:
    child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdout=subprocess.PIPE)
    child.stdout.readline()
    tree = lifeline.ProcessTree(psutil.Process(child.pid))
    tree.end(grace_seconds=0.5)
    assert child.wait() == -9
    assert tree.living() == []
    child.stdout.close()
