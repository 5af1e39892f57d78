"""The table of gpu.sh: rounds of W2g and W5 on one GPU, in processes of their own, engines taken in turn."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

HERE = Path(__file__).parent
ENGINES = ["floor", "k1", "k8", "k32", "k128", "flower"]
GOALS = {("W2g", "k32", "floor"): 15, ("W2g", "k32", "flower"): 40, ("W5", "k32", "floor"): 4}


def main() -> None:
    """Run every cell twice and print times the plain loop of the same precision."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu", action="store_true", help="without a GPU, to test the script")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not arguments.cpu:
        sys.exit("no CUDA device is here; --cpu --quick tests the script without one")
    seconds: dict[tuple[str, str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("FEDFM_SPEED_FOLDER", str(Path(scratch) / "data"))
        os.environ["FEDFM_SPEED_DEVICE"] = "cpu" if arguments.cpu else "cuda"
        for _ in range(1 if arguments.quick else 2):
            for workload in ("W2g", "W5"):
                for dtype in ("float32", "bfloat16"):
                    for engine in ENGINES:
                        found = cell(workload, engine, dtype, arguments.quick, Path(scratch))
                        seconds.setdefault((workload, dtype, engine), []).extend(found)
    text = table(seconds, "CPU, a test of the script" if arguments.cpu else torch.cuda.get_device_name())
    print(text)
    if not arguments.cpu:
        (HERE / "results" / "gpu.md").write_text(text + "\n", encoding="utf-8")


def cell(workload: str, engine: str, dtype: str, quick: bool, scratch: Path) -> list[float]:
    """Seconds of the rounds but the first; none where the cell failed or lost updates."""
    out = scratch / f"{workload}-{engine}"
    command = [sys.executable, str(HERE / "cell.py"), workload, engine, "--dtype", dtype, "--out", str(out)]
    command += ["--rounds", "4", *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        print(f"{workload} {dtype} {engine}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return []
    result = json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))
    return result["walls"][1:] if result["updates"] == result["expected"] else []


def table(seconds: dict[tuple[str, str, str], list[float]], device: str) -> str:
    """One row a workload and precision: times as fast as the plain loop of that precision."""
    lines = [f"Device: {device}. Times as fast as the plain loop of the same precision.", ""]
    lines += [f"| workload | dtype | {' | '.join(ENGINES)} |", f"|{'---|' * (len(ENGINES) + 2)}"]
    for workload, dtype in dict.fromkeys((w, d) for w, d, _ in seconds):
        floor = seconds[workload, dtype, "floor"]
        own = [seconds.get((workload, dtype, engine), []) for engine in ENGINES]
        cells = [f"{median(floor) / median(s):.2f}" if s and floor else "-" for s in own]
        lines.append(f"| {workload} | {dtype} | {' | '.join(cells)} |")
    for (workload, engine, against), wanted in GOALS.items():
        fast, slow = (seconds.get((workload, "float32", name), []) for name in (engine, against))
        if fast and slow:
            ratio = median(slow) / median(fast)
            lines.append(f"\n{workload} {engine} over {against}: {ratio:.1f}x, wanted {wanted}x")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
