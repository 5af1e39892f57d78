"""One cell of the benchmark in a process of its own: `python cell.py WORKLOAD ENGINE --rounds N --out FILE`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fedfm.engines.running import quiet_libraries

quiet_libraries()

FLOORS = {"floor": False, "floor-tuned": True}
WRITES_START = (*FLOORS, "k32")  # what others are compared with: how far it moved is the measure


def main() -> None:
    """Runs the cell and writes FILE.json and FILE.npz (the weights)."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("workload")
    parser.add_argument("engine")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--operators", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.quick:
        os.environ["FEDFM_SPEED_QUICK"] = "1"
    import numpy as np
    import torch

    from fedfm.models.devices import set_products

    torch.set_num_threads(1)
    set_products(arguments.dtype)
    result = run(arguments)
    if torch.cuda.is_initialized():
        result["gpu_mib"] = torch.cuda.max_memory_reserved() // 2**20
    weights = {name: np.asarray(value) for name, value in result.pop("weights", {}).items()}
    if weights and arguments.engine in WRITES_START:
        weights |= start_of(arguments, weights)
    np.savez(arguments.out.with_suffix(".npz"), **weights)
    arguments.out.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")


def run(arguments: argparse.Namespace) -> dict:
    """The result of the cell's engine, or its operators."""
    engine, rounds = arguments.engine, arguments.rounds
    if arguments.workload.startswith("S1"):
        import s1

        sites = 100 if arguments.quick else 1000
        return s1.run(engine, rounds, sites, 10 if arguments.workload == "S1-10" else sites)
    from workloads import chosen

    workload = chosen(arguments.workload, arguments.dtype)
    if arguments.operators:
        import operators

        is_floor = engine in FLOORS
        count = operators.of_floor(workload, FLOORS[engine]) if is_floor else operators.of_fedfm(workload, engine)
        return {"operators": count}
    if engine in FLOORS:
        return floor_result(workload, rounds, FLOORS[engine])
    if engine.startswith("flower"):
        import flower_stock

        return flower_stock.run(workload, engine, rounds)
    if engine == "pfl":
        import pfl_peer

        return pfl_peer.run(workload, rounds)
    import fedfm_engines

    return fedfm_engines.run(workload, engine, rounds)


def start_of(arguments: argparse.Namespace, names: Iterable[str]) -> dict:
    """The start weights, as `start:NAME`."""
    from peers import start_state
    from workloads import chosen

    start = start_state(chosen(arguments.workload, arguments.dtype))
    return {f"start:{name}": start[name].numpy() for name in names}


def floor_result(workload, rounds: int, tuned: bool) -> dict:
    """The plain loop's."""
    import floor
    from peers import fedfm_name, start_state

    start = start_state(workload)
    turns, state = floor.run(workload, start, rounds, tuned)
    weights = {fedfm_name(name): value.cpu().numpy() for name, value in state.items()}
    updates = workload.sites * rounds
    return {
        "walls": turns.walls, "cpus": turns.cpus, "updates": updates, "expected": updates, "weights": weights,
    }  # fmt: skip


if __name__ == "__main__":
    main()
