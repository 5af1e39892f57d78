"""The tables of gpu.sh: W2g and W5 on one GPU, every engine a process of its own, rounds taken in turn.

Of 32 sites all engines; of 128 (W2h, W5h) k32 and k128, compared with the plain loop by seconds a site, of which the
plain loop takes as many whatever the number of sites. A ratio is that of two rounds with the same number, wall seconds,
the GPU waited for; the median is reported. The first and the last round of a process are dropped. A cell is void unless
N of N updates came and the weights are those of the plain loop, or k128's those of k32: in float32 to 1 % of the way
that they go, 5 % where float64's were equal (harness.py), in tf32 and bfloat16 to 25 %. In float64 they are compared
first, on W2, which is W2g with eight sites.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from demands import EXACT
from gpu_report import DTYPES, OURS, tables
from harness import DROPPED, PROVEN_TOLERANCE, TOLERANCE, Cell, judged, take_turns
from report import machine, plain

HERE = Path(__file__).parent
ROUNDED = 0.25  # tolerance where products are rounded: Adam's first steps turn rounding into whole steps


class Case(NamedTuple):
    """Engines that take turns; the first is what the others are compared with. `batch`: cases that start together."""

    batch: int
    workload: str
    dtype: str
    engines: tuple[str, ...]


SOME = ("floor", "k1", "k8", "k32", "auto")
CASES = [  # stock Flower builds the body anew for each site: of W5 that takes longer than all else
    Case(1, "W2", "float64", ("floor", "k1", "k8", "k32", "k128", "auto")),
    *(Case(1, "W2g", dtype, (*SOME, "flower")) for dtype in ("float32", "bfloat16")),
    Case(1, "W2g", "tf32", ("floor", "k32")),
    *(Case(2, "W5", dtype, SOME) for dtype in ("float32", "bfloat16")),
    Case(2, "W5", "tf32", ("floor", "k32")),
    *(Case(2, "W2h", dtype, ("k32", "k128")) for dtype in ("float32", "bfloat16")),
    *(Case(2, "W5h", dtype, ("k32", "k128")) for dtype in ("bfloat16", "float32")),  # the last needs most memory
]


def main() -> None:
    """Run what the command line asks for and print the tables, which also stand in gpu.md below `--out`."""
    arguments = parse()
    import torch

    if not torch.cuda.is_available() and not arguments.cpu:
        sys.exit("gpu.sh: no CUDA device is here, so nothing is measured; --cpu --quick tests the script without one")
    os.environ["FEDFM_SPEED_DEVICE"] = "cpu" if arguments.cpu else "cuda"
    if arguments.quick:
        os.environ["FEDFM_SPEED_QUICK"] = "1"
    results = begun("CPU, a test of the script" if arguments.cpu else torch.cuda.get_device_name(), arguments)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["FEDFM_SPEED_FOLDER"] = str(Path(scratch) / "data")
        cases = chosen(arguments)
        for _, batch in groupby(cases, key=lambda case: case.batch):
            for found in measured(list(batch), arguments.rounds + DROPPED, Path(scratch), results):
                results["cells"] += found
                write(results, arguments.out)
    print((arguments.out / "gpu.md").read_text(encoding="utf-8"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=["W2g", "W2h", "W5", "W5h"], help="default: all")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, help="default: all")
    parser.add_argument("--engine", nargs="+", choices=[*OURS, "flower"], help="default: all; the plain loop always")
    parser.add_argument("--rounds", type=int, default=3, help="that are measured (default 3)")
    parser.add_argument("--skip-exact", action="store_true", help="leave the float64 comparison out")
    parser.add_argument("--cpu", action="store_true", help="without a GPU, to test the script")
    parser.add_argument("--quick", action="store_true", help="little work")
    parser.add_argument("--out", type=Path, help="folder (default: results, or where nothing is measured a new one)")
    arguments = parser.parse_args()
    if arguments.out is None:
        tested = arguments.cpu or arguments.quick
        arguments.out = Path(tempfile.mkdtemp(prefix="fedfm-gpu-test-")) if tested else HERE / "results"
    return arguments


def chosen(arguments: argparse.Namespace) -> list[Case]:
    """The cases that the command line asks for."""
    cases = []
    for case in CASES:
        is_exact = case.dtype == "float64"
        wanted = not arguments.skip_exact if is_exact else (
            case.workload in (arguments.workload or (case.workload,)) and case.dtype in (arguments.dtype or DTYPES)
        )  # fmt: skip
        engines = [e for e in case.engines if not arguments.engine or e in (case.engines[0], *arguments.engine)]
        if wanted and len(engines) > 1:
            cases.append(case._replace(engines=tuple(engines)))
    return cases


def begun(device: str, arguments: argparse.Namespace) -> dict:
    """The results before the first cell."""
    made = datetime.now(UTC).isoformat(timespec="seconds")
    words = {"made": made, "device": device, "quick": arguments.quick, "rounds": arguments.rounds}
    return words | {"environment": machine(), "cells": []}


def measured(cases: Sequence[Case], rounds: int, scratch: Path, results: dict) -> Iterator[list[dict]]:
    """The cells of each case. All processes start side by side, and then wait for their turns."""
    import workloads  # not before FEDFM_SPEED_DEVICE is set

    ready = []
    for case in cases:
        workloads.prepare(workloads.chosen(case.workload), Path(os.environ["FEDFM_SPEED_FOLDER"]))
        own = scratch / case.dtype
        own.mkdir(exist_ok=True)
        quick = ["--quick"] if os.environ.get("FEDFM_SPEED_QUICK") else []
        options = ["--dtype", case.dtype, *quick]
        ready.append([Cell(case.workload, engine, rounds, own, *options) for engine in case.engines])
    for cell in (cell for cells in ready for cell in cells):
        cell.wait()
    for case, cells in zip(cases, ready, strict=True):
        take_turns(cells, rounds)
        yield [told(case, cell, scratch / case.dtype, proven(results)) for cell in cells]


def told(case: Case, cell: Cell, scratch: Path, exact: Sequence[str]) -> dict:
    """What a cell gave. bfloat16 and tf32 round in other places where rows share a batch."""
    tolerance = PROVEN_TOLERANCE if cell.engine in exact else TOLERANCE
    tolerance = ROUNDED if case.dtype in ("tf32", "bfloat16") else tolerance
    found = judged(cell.result(), case.workload, scratch, tolerance, reference=case.engines[0])
    return found | {"dtype": case.dtype}


def proven(results: dict) -> list[str]:
    """Engines whose weights in float64 were those of the plain loop."""
    exact = [cell for cell in results["cells"] if cell["dtype"] == "float64"]
    return [cell["engine"] for cell in exact if cell.get("difference", math.nan) <= EXACT]


def write(results: dict, out: Path) -> None:
    """gpu.json as measured, gpu.md to read."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(plain(results), indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(tables(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
