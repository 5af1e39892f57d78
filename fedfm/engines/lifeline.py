"""Run a command that does not outlive whoever started it: `python lifeline.py COMMAND...`.

Flower's daemons detach themselves and each other, and a simulation goes on when the SuperLink that started it is gone.
This small process stands between: it holds the command, and ends it and everything below it when its own standard
input closes. A pipe closes with its writer, whatever ended the writer, SIGKILL included.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable

import psutil

WATCH_SECONDS = 0.5
GRACE_SECONDS = 8.0  # Ray and Flower's simulation take 2-5 s to end in good order


class ProcessTree:
    """All processes ever seen below one process.

    A process whose parent ended belongs to init, so that looking down once, at the end, would miss it.
    """

    def __init__(self, root: psutil.Process):
        self._root = root
        self._seen: set[psutil.Process] = {root}

    def look(self) -> None:
        """Remember who is there now."""
        for process in list(self._seen):
            try:
                self._seen.update(process.children(recursive=True))
            except psutil.NoSuchProcess:
                continue

    def living(self) -> list[psutil.Process]:
        return [process for process in self._seen if _lives(process)]

    def end(self, grace_seconds: float = GRACE_SECONDS) -> None:
        """Ask all to end, from the root down; after the grace, kill those that are left."""
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
                try:
                    signal(process)
                except psutil.NoSuchProcess:
                    pass
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
        sys.stdin.buffer.read()
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
