"""Run a command that does not outlive whoever started it: `python lifeline.py COMMAND...`.

Flower's daemons detach themselves and each other, and a simulation goes on when the SuperLink that started it is gone.
This small process stands between: it holds the command, and ends it and everything below it when its own standard
input closes. A pipe closes with its writer, whatever ended the writer, SIGKILL included.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress

import psutil

WATCH_SECONDS = 0.5
GRACE_SECONDS = 8.0  # Ray and Flower's simulation take 2-5 s to end in good order


class ProcessTree:
    """All processes ever seen below one process.

    A process whose parent ended belongs to init, so that looking down once, at the end, would miss it.
    """

    def __init__(self, root: psutil.Process):
        self._seen: set[psutil.Process] = {root}

    def look(self) -> None:
        """Remember who is there now."""
        below: dict[int, list[psutil.Process]] = defaultdict(list)
        for process in psutil.process_iter():
            try:
                below[process.ppid()].append(process)
            except psutil.NoSuchProcess:
                continue
        waiting = self.living()
        while waiting:
            fresh = [process for process in below[waiting.pop().pid] if process not in self._seen]
            self._seen.update(fresh)
            waiting += fresh

    def living(self) -> list[psutil.Process]:
        return [process for process in self._seen if _lives(process)]

    def end(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask all to end; kill those that are left after the grace."""
        self._signal_until_gone(psutil.Process.terminate, grace_seconds)
        self._signal_until_gone(psutil.Process.kill, grace_seconds)

    def _signal_until_gone(self, signal: Callable[[psutil.Process], None], seconds: float) -> None:
        signalled: set[psutil.Process] = set()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.look()
            left = self.living()
            if not left:
                return
            for process in set(left) - signalled:
                with suppress(psutil.NoSuchProcess):
                    signal(process)
                signalled.add(process)
            time.sleep(0.1)


def _lives(process: psutil.Process) -> bool:
    """A zombie is gone; it only waits for its parent to notice."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def main(command: list[str]) -> int:
    """Run `command` until it ends or standard input closes; its exit status."""
    closed = threading.Event()

    def wait_for_end_of_input() -> None:
        while os.read(0, 4096):  # not sys.stdin: a thread that waits in it breaks the interpreter's shutdown
            pass
        closed.set()

    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    tree = ProcessTree(psutil.Process(child.pid))
    threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    while child.poll() is None and not closed.wait(WATCH_SECONDS):
        tree.look()
    tree.end()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
