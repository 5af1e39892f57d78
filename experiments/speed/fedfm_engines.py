"""fedfm itself, through its own engines: the round loop as `fedfm run` runs it, rounds of training only."""

from __future__ import annotations

import tempfile
from pathlib import Path

from peers import FOLDER
from safetensors.numpy import load_file
from turns import Turns, of_rounds
from workloads import Workload, prepare

import fedfm

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


def run(workload: Workload, engine: str, rounds: int) -> dict:
    """Seconds of each round, updates that arrived, weights after `rounds`. The last round ends with scores."""
    turns = Turns()
    listen = of_rounds(turns, rounds)

    config = prepare(workload, FOLDER).replace(f"rounds={rounds}", *ENGINES[engine])
    with tempfile.TemporaryDirectory() as folder:
        done = fedfm.run(config, f"runs.folder={folder}", listen=listen, report=False)
        weights = load_file(Path(done.folder) / "model" / "weights.safetensors")
        used, info = done.rounds["sites_used"].tolist()[1:], done.info
    return {
        "walls": turns.walls, "cpus": turns.cpus, "updates": sum(used), "expected": workload.sites * rounds,
        "weights": {n.partition("/")[2]: v for n, v in weights.items()},
        "rows": info["sites_at_once"], "sha256": info["final_weights_sha256"],
    }  # fmt: skip
