"""What a run ran on: versions, hardware, commit. No user name, host name or path of the machine is recorded."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("fedfm", "torch", "flwr", "transformers", "peft", "numpy", "ray")


def environment() -> dict[str, Any]:
    """`{"versions": {package: version or None}, "hardware": {...}, "commit": str or None}`, plain JSON values.

    Versions come from the installed metadata: nothing heavy is imported. Memory is in bytes. `commit` is that of the
    source tree that this file lies in, with "-dirty" after it when the tree has changes; None for an installed wheel.
    """
    versions = {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    return {"versions": versions, "hardware": _hardware(), "commit": _commit(Path(__file__).resolve().parents[2])}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _hardware() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": _proc_value(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine(),
        "cores": usable_cores(),
        "memory_bytes": _memory_bytes(),
        "accelerators": _accelerators(),
    }


def usable_cores() -> int:
    """Cores that this process may use, which a scheduler or a container can make fewer than the machine has."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return max(1, min(cores, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return cores


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not a POSIX system
        return None


def _accelerators() -> list[str]:
    """Models of the NVIDIA devices that the driver lists; asking torch would mean importing it."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    return [model for card in cards if (model := _proc_value(card, "Model"))]


def _proc_value(path: Path, key: str) -> str | None:
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), None)


def _commit(root: Path) -> str | None:
    if not (root / ".git").exists():  # else git would find a repository that merely contains the environment
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip() or None
