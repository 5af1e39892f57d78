"""The table of gpu.sh: W2g and W5 on one GPU, every cell a process of its own, rounds taken in turn."""

from __future__ import annotations

import argparse
import math
import os
import sys
import tempfile
from itertools import product
from operator import truediv
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parent))
from harness import TOLERANCE, side_by_side

HERE = Path(__file__).parent
WORKLOADS = ("W2g", "W5")
TOLERANCES = {"float32": TOLERANCE, "bfloat16": math.inf}
ENGINES = ["k1", "k8", "k32", "k128", "flower"]
GOALS = {("W2g", "k32", "floor"): 15, ("W2g", "k32", "flower"): 40, ("W5", "k32", "floor"): 4}
Ratios = dict[tuple[str, str, str], float | None]  # (workload, dtype, engine) -> times the plain loop; None: void
ROUNDS = 5  # of which the first and the last are dropped


def main() -> None:
    """Run every workload in both precisions and print times the plain loop of the same precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="without a GPU, to test the script")
    parser.add_argument("--quick", action="store_true", help="little work")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not arguments.cpu:
        sys.exit("gpu.sh: no CUDA device is here, so nothing is measured; --cpu --quick tests the script without one")
    os.environ["FEDFM_SPEED_DEVICE"] = "cpu" if arguments.cpu else "cuda"
    ratios, notes = measured(["--quick"] if arguments.quick else [])
    text = table(ratios, notes, "CPU, a test of the script" if arguments.cpu else torch.cuda.get_device_name())
    print(text)
    if not arguments.cpu:
        (HERE / "results").mkdir(exist_ok=True)
        (HERE / "results" / "gpu.md").write_text(text + "\n", encoding="utf-8")


def measured(options: list[str]) -> tuple[Ratios, list[str]]:
    """Every engine beside the plain loop, two at a time so that both fit on the device; and why a cell is void.

    bfloat16 rounds in other places where rows share a batch, and the first steps of Adam turn that into whole steps:
    there only the number of updates is checked.
    """
    ratios: Ratios = {}
    notes = []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDFM_SPEED_FOLDER"] = str(Path(scratch) / "data")
        for workload, dtype, engine in product(WORKLOADS, TOLERANCES, ENGINES):
            own = [*options, "--dtype", dtype]
            pair = side_by_side(workload, ["floor", engine], ROUNDS, Path(scratch), *own, tolerance=TOLERANCES[dtype])
            voids = [f"{workload} {dtype} {cell['engine']} is void: {cell['void']}" for cell in pair if "void" in cell]
            notes += voids
            floor, cell = pair
            found = None if voids else median(map(truediv, floor["walls"], cell["walls"]))
            ratios[workload, dtype, engine] = found
    return ratios, notes


def table(ratios: Ratios, notes: list[str], device: str) -> str:
    """One row a workload and precision: times as fast as the plain loop; then the goals and what is void."""
    lines = [f"Device: {device}. Times as fast as the plain loop of the same precision, wall seconds.", ""]
    lines += [f"| workload | dtype | {' | '.join(ENGINES)} |", f"|{'---|' * (len(ENGINES) + 2)}"]
    for workload, dtype in product(WORKLOADS, TOLERANCES):
        row = [ratios[workload, dtype, engine] for engine in ENGINES]
        lines.append(f"| {workload} | {dtype} | {' | '.join('void' if r is None else f'{r:.2f}' for r in row)} |")
    lines.append("")
    for (workload, engine, against), wanted in GOALS.items():
        fast, slow = (1.0 if name == "floor" else ratios[workload, "float32", name] for name in (engine, against))
        if fast and slow:
            lines.append(f"{workload}: {engine} over {against} {fast / slow:.1f}x, wanted {wanted}x")
    return "\n".join([*lines, *notes])


if __name__ == "__main__":
    main()
