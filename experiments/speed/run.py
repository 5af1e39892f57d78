"""How fast is fedfm, against the plain loop, stock Flower and pfl? Ratios of one interleaved run, never seconds.

    python experiments/speed/run.py                                   everything, about an hour on 2 cores
    python experiments/speed/run.py --workload W2t --engine floor k1 k8 k32
    python experiments/speed/run.py --quick                           tests the benchmark itself

Every cell (workload x engine) is a process of its own, started anew in every repetition, engines taken in turn
(A B A B). The first round of a process is dropped; a ratio is that of the medians of one repetition, and of the ratios
the median, the lowest and the highest are reported. A row is void unless N of N updates came and the weights are those
of the floor. One compute thread each. Writes results/speed.json, speed.csv, speed.md and speed.png/svg.
Needs the extra `minilm`; `pfl` comes with the extra `bench` and is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))
from report import write_report

HERE = Path(__file__).parent
PLAN = {  # workload -> engines that are run on it unless --engine says otherwise
    "W1": ["floor", "k1", "k8", "auto", "flower", "flower-cached", "pfl"],
    "W2": ["floor", "k1", "k8", "auto", "ray1", "ray2", "flower", "flower-cached", "pfl"],
    "W2s": ["floor", "k1", "k8", "auto"],
    "W2xs": ["floor", "k1", "k32", "auto"],
    "W2t": ["floor", "k1", "k8", "k32", "auto", "flower", "flower-cached", "pfl"],
    "W3": ["floor", "k1", "auto", "k1-buckets"],
    **{f"W4-{m}": ["floor", "k8-uncached", "k8"] for m in range(4)},
    "S1": ["k1", "auto", "ray1", "ray2"],
}
OPERATORS = {"W1": ["k1", "k8"], "W2t": ["k1", "k8", "k32"]}  # counted: in these engines and workloads
EXACT = ["k1", "k8", "auto", "ray1", "ray2"]  # compared with the floor in float64
HEAVY = ("W2", "W3")
LONGEST_CELL = 1800.0


def main() -> None:
    """Run the cells that the command line asks for and write the results."""
    arguments = parse()
    results: dict = {"cells": [], "operators": {}, "exact": {}, "notes": []}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("FEDFM_SPEED_FOLDER", str(Path(scratch) / "data"))
        for workload in arguments.workload or PLAN:
            engines = [e for e in PLAN[workload] if not arguments.engine or e in arguments.engine]
            if "pfl" in engines and importlib.util.find_spec("pfl") is None:
                engines.remove("pfl")
                results["notes"].append("pfl is not installed (pip install 'fedfm[bench]') and was left out")
            for repetition in range(arguments.repetitions):
                for engine in engines:
                    results["cells"].append(measure(workload, engine, repetition, arguments, Path(scratch)))
            for engine in set(OPERATORS.get(workload, [])) & set(engines):
                cell = run_cell(workload, engine, arguments, Path(scratch), "--operators", rounds=1)
                results["operators"][f"{workload} {engine}"] = cell.get("operators")
            if workload in ("W1", "W2t", "W3") and not arguments.skip_exact:
                results["exact"][workload] = exact(workload, engines, arguments, Path(scratch))
            write_report(results, arguments.out, arguments.quick)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=list(PLAN), help="default: all")
    parser.add_argument("--engine", nargs="+", help="default: those that make sense for a workload")
    parser.add_argument("--rounds", type=int, default=0, help="default: 6, of the heavy workloads 3")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="little work: tests the benchmark, measures nothing")
    parser.add_argument("--skip-exact", action="store_true", help="leave the float64 comparison out")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    return parser.parse_args()


def measure(workload: str, engine: str, repetition: int, arguments: argparse.Namespace, scratch: Path) -> dict:
    """One cell: its rounds, whether it did its work, how far its weights are from the floor's of this repetition."""
    load = psutil.getloadavg()[0]
    cell = run_cell(workload, engine, arguments, scratch)
    cell |= {"workload": workload, "engine": engine, "repetition": repetition, "load": round(load, 2)}
    cell["walls"], cell["cpus"] = cell.get("walls", [])[1:], cell.get("cpus", [])[1:]
    if "void" not in cell and cell["updates"] != cell["expected"]:
        cell["void"] = f"{cell['updates']} of {cell['expected']} updates came"
    if "void" not in cell and workload != "S1" and engine not in ("floor", "k1-buckets"):
        cell["difference"] = difference(scratch, workload, engine)
        same_batches = engine != "pfl"  # which cuts its users' data anew
        if same_batches and not cell["difference"] < 5e-3:
            cell["void"] = f"its weights are {cell['difference']:.1e} from the floor's"
    print(json.dumps({k: v for k, v in cell.items() if k not in ("cpus",)}), flush=True)
    return cell


def exact(workload: str, engines: list[str], arguments: argparse.Namespace, scratch: Path) -> dict[str, float]:
    """Largest difference to the floor after two rounds in float64."""
    run_cell(workload, "floor", arguments, scratch, "--dtype", "float64", rounds=2)
    found = {}
    for engine in (e for e in EXACT if e in engines or e.startswith("ray")):
        cell = run_cell(workload, engine, arguments, scratch, "--dtype", "float64", rounds=2)
        found[engine] = float("nan") if "void" in cell else difference(scratch, workload, engine)
        print(workload, engine, "float64 difference", found[engine], flush=True)
    return found


def difference(scratch: Path, workload: str, engine: str) -> float:
    """Largest difference of the final weights to the floor's; NaN where the tensors are not the same."""
    import numpy as np

    with np.load(scratch / f"{workload}-floor.npz") as floor, np.load(scratch / f"{workload}-{engine}.npz") as own:
        if set(floor.files) != set(own.files):
            return float("nan")
        return max(float(np.abs(floor[name] - own[name]).max()) for name in floor.files)


def run_cell(workload: str, engine: str, arguments: argparse.Namespace, scratch: Path, *more: str, rounds=0) -> dict:
    """A cell in a process of its own, its memory watched; a cell that fails says why in `void`."""
    out = scratch / f"{workload}-{engine}"
    command = [sys.executable, str(HERE / "cell.py"), workload, engine, "--out", str(out), *more]
    rounds = rounds or arguments.rounds or (3 if workload in HEAVY else 6)
    command += ["--rounds", str(rounds), *(["--quick"] if arguments.quick else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, env=environment)
        peak = [0]
        watch = threading.Thread(target=watch_memory, args=(process, peak), daemon=True)
        watch.start()
        try:
            code = process.wait(LONGEST_CELL)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        watch.join()
        said.seek(0)
        tail = said.read().decode(errors="replace").strip().splitlines()[-1:]
    if code:
        return {"void": f"ended with code {code}: {' '.join(tail)[:200]}", "peak_mib": 0}
    return json.loads(out.with_suffix(".json").read_text(encoding="utf-8")) | {"peak_mib": peak[0] // 2**20}


def watch_memory(process: subprocess.Popen, peak: list[int]) -> None:
    """Keep the largest proportional set size of the process and all below it in `peak`."""
    while process.poll() is None:
        try:
            root = psutil.Process(process.pid)
            peak[0] = max(peak[0], sum(pss(p.pid) for p in [root, *root.children(recursive=True)]))
        except psutil.Error:
            pass
        threading.Event().wait(0.5)


def pss(pid: int) -> int:
    """Proportional set size in bytes; 0 where the system does not tell."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except OSError:
        return 0


if __name__ == "__main__":
    main()
