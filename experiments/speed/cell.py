"""One cell of the benchmark in a process of its own: `python cell.py WORKLOAD ENGINE --rounds N --out FILE`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

from fedfm.engines.running import quiet_libraries

quiet_libraries()


def main() -> None:
    """Runs the cell and writes FILE.json and FILE.npz (the weights)."""
    parser = argparse.ArgumentParser()
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
    result = run(arguments)
    import numpy as np

    np.savez(arguments.out.with_suffix(".npz"), **{k: np.asarray(v) for k, v in result.pop("weights").items()})
    arguments.out.with_suffix(".json").write_text(json.dumps(result), encoding="utf-8")


def run(arguments: argparse.Namespace) -> dict:
    """The result of the cell's engine."""
    import torch

    torch.set_num_threads(1)
    engine, rounds = arguments.engine, arguments.rounds
    if arguments.workload == "S1":
        import s1

        return s1.run(engine, rounds, 100 if arguments.quick else 1000)
    from workloads import WORKLOADS, quick

    workload = WORKLOADS[arguments.workload]
    workload = replace(quick(workload) if arguments.quick else workload, dtype=arguments.dtype)
    if engine == "floor":
        import floor
        from peers import start_state

        walls, cpus, state = floor.run(workload, start_state(workload), rounds)
        from peers import fedfm_name

        sent = workload.sites * rounds
        weights = {fedfm_name(name): value.to(torch.float64).cpu().numpy() for name, value in state.items()}
        return {"walls": walls, "cpus": cpus, "updates": sent, "expected": sent, "weights": weights}
    if engine.startswith("flower"):
        import flower_stock

        return flower_stock.run(workload, engine, rounds)
    if engine == "pfl":
        import pfl_peer

        return pfl_peer.run(workload, rounds)
    import fedfm_engines

    if arguments.operators:
        count = fedfm_engines.operators_per_step(workload, engine)
        return {"operators": count, "weights": {}}
    return fedfm_engines.run(workload, engine, rounds)


if __name__ == "__main__":
    main()
