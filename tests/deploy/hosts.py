"""A deployment whose coordinator and sites are hosts of their own: network namespaces at one bridge, made for the test.

    with Hosts(tmp_path, ["st-mary", "bank-one"]) as net:
        net.cut("st-mary")      # its cable is pulled
        net.mend("st-mary")

Needs root and `ip`. Addresses are of a private range and live in the namespaces only; all of it is taken down by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from deployment import COORDINATOR, Deployment

NETWORK = "10.99.7"
AT_COORDINATOR = ("superlink", "superexec", COORDINATOR)
MISSING = "" if os.geteuid() == 0 and shutil.which("ip") else "network namespaces need root and the command ip"


class Hosts(Deployment):
    """`sites` and the coordinator, each in a namespace with an address; the test itself stands at the bridge."""

    def __init__(self, folder: Path, sites: Sequence[str]):
        self.number = {name: number for number, name in enumerate([COORDINATOR, *sites], start=1)}
        self.prefix = f"fm{os.getpid() % 100000}"
        super().__init__(folder, host=self.address_of(COORDINATOR))

    def address_of(self, host: str) -> str:
        return f"{NETWORK}.{self.number[host]}"

    def namespace_of(self, host: str) -> str:
        return f"{self.prefix}-{self.number[host]}"

    def on(self, name: str) -> list[str]:
        host = COORDINATOR if name in AT_COORDINATOR else name
        return ["ip", "netns", "exec", self.namespace_of(host)]

    def __enter__(self):
        try:
            self._plug()
        except BaseException:
            self._unplug()
            raise
        return super().__enter__()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self._unplug()

    def cut(self, host: str) -> None:
        ip("link", "set", self._cable(host), "down")

    def mend(self, host: str) -> None:
        ip("link", "set", self._cable(host), "up")

    def listening(self, host: str) -> list[str]:
        """The local addresses at which something on the host takes TCP connections."""
        words = [*self.on(host), "ss", "-Hltn"]
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        return [line.split()[3] for line in done.stdout.splitlines()]

    def _cable(self, host: str) -> str:
        """The end at the bridge."""
        return f"{self.prefix}v{self.number[host]}"

    def _plug(self) -> None:
        bridge = f"{self.prefix}br"
        _refuse_taken()
        ip("link", "add", bridge, "type", "bridge")
        ip("addr", "add", f"{NETWORK}.254/24", "dev", bridge)
        ip("link", "set", bridge, "up")
        for host in self.number:
            inside, space = f"{self.prefix}p{self.number[host]}", self.namespace_of(host)
            ip("netns", "add", space)
            ip("link", "add", self._cable(host), "type", "veth", "peer", "name", inside)
            ip("link", "set", inside, "netns", space)
            ip("link", "set", self._cable(host), "master", bridge, "up")
            ip("-n", space, "addr", "add", f"{self.address_of(host)}/24", "dev", inside)
            ip("-n", space, "link", "set", inside, "up")
            ip("-n", space, "link", "set", "lo", "up")

    def _unplug(self) -> None:
        for host in self.number:
            for gone in (("link", "delete", self._cable(host)), ("netns", "delete", self.namespace_of(host))):
                with suppress(subprocess.CalledProcessError):  # a cable outlives its host while a connection times out
                    ip(*gone)
        with suppress(subprocess.CalledProcessError):
            ip("link", "delete", f"{self.prefix}br")


def _refuse_taken() -> None:
    """Two bridges of one range take each other's packets, and the test would wait in vain for an answer."""
    words = ["ip", "-brief", "addr", "show", "to", f"{NETWORK}.0/24"]
    taken = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert not taken, f"{NETWORK}.0/24 is taken, by a test that was killed? `ip link delete {taken[0]}` frees it"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
