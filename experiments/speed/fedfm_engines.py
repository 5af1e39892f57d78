"""fedfm itself, through its own engines: the round loop as `fedfm run` runs it, rounds of training only."""

from __future__ import annotations

import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil
import torch
from peers import FOLDER
from safetensors.numpy import load_file
from workloads import Workload, prepare

import fedfm
from fedfm.training import fit as fit_module

ENGINES = {
    "k1": ["engine.sites-at-once=1"],
    "k8": ["engine.sites-at-once=8"],
    "k32": ["engine.sites-at-once=32"],
    "k128": ["engine.sites-at-once=128"],
    "auto": ["engine.sites-at-once=auto"],
    "ray1": ["engine.name=ray", "engine.workers=1"],
    "ray2": ["engine.name=ray", "engine.workers=2"],
    "k1-buckets": ["local.length-buckets=true"],
    "k8-uncached": ["engine.sites-at-once=8", "engine.feature-cache=0"],
}
VIEWS = {  # not counted: they launch nothing
    "view", "_unsafe_view", "t", "transpose", "expand", "detach", "unsqueeze", "squeeze", "select", "slice", "reshape",
    "permute", "as_strided", "alias", "empty", "empty_like", "split", "unbind", "_reshape_alias", "lift_fresh",
}  # fmt: skip


def run(workload: Workload, engine: str, rounds: int) -> dict:
    """Seconds of each round but the last (which ends with scores), updates that arrived, weights after `rounds`."""
    marks: list[tuple[float, float]] = []

    def listen(event: dict) -> None:
        if event["event"] == "round-finished":
            marks.append((time.perf_counter(), tree_cpu_seconds()))

    config = prepare(workload, FOLDER).replace(f"rounds={rounds}", *ENGINES[engine])
    with tempfile.TemporaryDirectory() as folder:
        done = fedfm.run(config, f"runs.folder={folder}", listen=listen)
        weights = load_file(Path(done.folder) / "model" / "weights.safetensors")
        used, rows = done.rounds["sites_used"].tolist()[1:], done.info["sites_at_once"]
    spans = [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(marks)][:-1]
    return {
        "walls": [wall for wall, _ in spans], "cpus": [cpu for _, cpu in spans], "updates": sum(used),
        "expected": workload.sites * rounds, "weights": {n.partition("/")[2]: v for n, v in weights.items()},
        "rows": rows,
    }  # fmt: skip


def tree_cpu_seconds() -> float:
    """CPU seconds of this process and all that it started."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
            total += times.user + times.system
        except psutil.Error:
            continue
    return total


def operators_per_step(workload: Workload, engine: str) -> float:
    """aten operators (views apart) of one site's step, counted over a whole round of `fit` calls."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.operators = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operators += function._schema.name.split("::")[1] not in VIEWS
            return function(*args, **(kwargs or {}))

    real, seen = fit_module.fit, {"operators": 0, "steps": 0}

    def counted(matrix, works, local, correct=None):
        with Count() as count:
            losses = real(matrix, works, local, correct)
        seen["operators"] += count.operators
        seen["steps"] += sum(-(-len(work.features) // local.batch_size) for work in works)
        return losses

    fit_module.fit = counted
    try:
        run(workload, engine, 1)
    finally:
        fit_module.fit = real
    return seen["operators"] / seen["steps"]


def set_threads() -> None:
    torch.set_num_threads(1)
