"""Cells in processes of their own: started, given their turns, watched, compared with the floor."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import psutil
from turns import VARIABLE

HERE = Path(__file__).parent
LONGEST_TURN = 1800.0  # seconds
LOOK_SECONDS = 0.3  # from one look at a cell's memory to the next, where looking is quick
REST = 50  # times what a look took: where an engine has all cores at work, looking takes the time of its own
DROPPED = 2  # rounds of every process: the first loads data, the last ends with scores
TOLERANCE = 1e-2  # float32: distance to the floor's weights, as a share of how far training moved those
PROVEN_TOLERANCE = 5e-2  # of an engine whose float64 weights are the floor's: a maximum that another order of the same
# sum decides the other way changes a whole entry of a gradient, which grows from round to round
NOT_COMPARED = ("floor", "k1-buckets")  # itself; other batches on purpose


class Cell:
    """One engine on one workload in a process of its own, which `wait` waits for. `alive` until it has said all or
    failed."""

    def __init__(self, workload: str, engine: str, rounds: int, scratch: Path, *options: str):
        self.engine, self.rounds, self.peak = engine, rounds, 0
        self.out = scratch / f"{workload}-{engine}"
        for suffix in (".json", ".npz"):  # of an earlier run: a cell that fails must not be judged by them
            self.out.with_suffix(suffix).unlink(missing_ok=True)
        hears, self._say = os.pipe()
        self._hear, says = os.pipe()
        command = [sys.executable, str(HERE / "cell.py"), workload, engine, "--out", str(self.out)]
        own = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", VARIABLE: f"{hears},{says}"}
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115 (read at the end, gone with the cell)
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            [*command, "--rounds", str(rounds), *options], stdout=self._printed, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=os.environ | own, pass_fds=(hears, says),
        )  # fmt: skip
        os.close(hears)
        os.close(says)

    def wait(self) -> None:
        """Until it stands before its first round."""
        self.alive = self._next() == b"r"
        self.start_up = time.perf_counter() - self._started

    def turn(self, is_last: bool) -> None:
        """One round; after the last the cell ends by itself, while others take theirs, which is not counted."""
        os.write(self._say, b"g")
        self.alive = self._next() == b"d" and not is_last and self._next() == b"r"

    def _next(self) -> bytes:
        """What the cell says next, its memory watched meanwhile; nothing once it has ended."""
        until, pause = time.perf_counter() + LONGEST_TURN, LOOK_SECONDS
        while time.perf_counter() < until:
            ready, _, _ = select.select([self._hear], [], [], pause)
            looked = time.perf_counter()
            self.peak = max(self.peak, tree_pss(self.process.pid))
            pause = max(LOOK_SECONDS, REST * (time.perf_counter() - looked))
            if ready:
                return os.read(self._hear, 1)
        self._end_tree()
        return b""

    def _end_tree(self) -> None:
        for process in [*psutil.Process(self.process.pid).children(recursive=True), self.process]:
            process.kill()

    def close(self) -> None:
        """Wait for the end of the process."""
        os.close(self._say)
        try:
            self.process.wait(LONGEST_TURN)
        except subprocess.TimeoutExpired:
            self._end_tree()
            self.process.wait()
        os.close(self._hear)
        self.alive = False

    def result(self) -> dict:
        """What the cell wrote, or why there is nothing; the first and the last round are not in it."""
        self.close()
        seen = {
            "engine": self.engine,
            "rounds": self.rounds,
            "peak_mib": self.peak // 2**20,
            "start_up": round(self.start_up, 2),
        }
        with self._printed as printed:
            printed.seek(0)
            tail = printed.read().decode(errors="replace").strip().splitlines()[-1:]
        if self.process.returncode or not self.out.with_suffix(".json").exists():
            return seen | {"void": f"ended with code {self.process.returncode}: {' '.join(tail)[:200]}"}
        told = json.loads(self.out.with_suffix(".json").read_text(encoding="utf-8"))
        for clock in ("walls", "cpus"):  # without the rounds that are dropped
            told[clock] = told.get(clock, [])[1:-1]
        return seen | told


def side_by_side(
    workload: str, engines: list[str], rounds: int, scratch: Path, *options: str, tolerance: float = TOLERANCE,
    proven: Collection[str] = (),
) -> list[dict]:  # fmt: skip
    """Results of the engines, which take turns for `rounds` rounds; void ones say why.

    `proven`: whose weights in float64 are those of the floor after as many rounds.
    """
    cells = []
    for engine in engines:
        cells.append(Cell(workload, engine, rounds, scratch, *options))
        cells[-1].wait()
    take_turns(cells, rounds)
    tolerances = dict.fromkeys(proven, PROVEN_TOLERANCE)
    return [judged(c.result(), workload, scratch, tolerances.get(c.engine, tolerance)) for c in cells]


def take_turns(cells: Sequence[Cell], rounds: int) -> None:
    """One round of each after the other, `rounds` times; all must stand before their first one."""
    for number in range(1, rounds + 1):
        for cell in cells:
            if cell.alive:
                cell.turn(is_last=number == rounds)


def judged(result: dict, workload: str, scratch: Path, tolerance: float = TOLERANCE, reference: str = "floor") -> dict:
    """The result, with its distance to the reference; void where updates are missing or the weights are other ones."""
    result |= {"workload": workload, "load": round(psutil.getloadavg()[0], 2)}
    if "void" not in result and result["updates"] != result["expected"]:
        result["void"] = f"{result['updates']} of {result['expected']} updates came"
    known, own = (scratch / f"{workload}-{name}.npz" for name in (reference, result["engine"]))
    if "void" in result or result["engine"] in (reference, *NOT_COMPARED) or not known.exists():
        return result
    result |= distance(known, own)
    if not result["share"] < tolerance:
        result["void"] = (
            f"its weights are {result['difference']:.1e} from the {reference}'s, {result['share']:.1%} of the way"
        )
    return result


def distance(known: Path, own: Path) -> dict[str, float]:
    """`difference`: the largest one between the weights; `share`: their distance over how far the known ones moved.

    NaN where the tensors are not the same ones.
    """
    with np.load(known) as ours, np.load(own) as theirs:
        names = [name for name in ours.files if not name.startswith("start:")]
        if set(names) != {name for name in theirs.files if not name.startswith("start:")}:
            return {"difference": float("nan"), "share": float("nan")}
        apart = [np.asarray(ours[n], np.float64) - theirs[n] for n in names]
        moved = [np.asarray(ours[n], np.float64) - ours[f"start:{n}"] for n in names]
    length = np.sqrt(sum(float((d**2).sum()) for d in apart) / sum(float((d**2).sum()) for d in moved))
    return {"difference": max(float(np.abs(d).max()) for d in apart), "share": float(length)}


def operators(workload: str, engine: str, scratch: Path, *options: str) -> float | None:
    """aten operators of a site's step; None where the cell failed."""
    out = scratch / f"{workload}-{engine}-operators"
    command = [sys.executable, str(HERE / "cell.py"), workload, engine, "--operators", "--out", str(out), *options]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return None if done.returncode else json.loads(out.with_suffix(".json").read_text(encoding="utf-8"))["operators"]


def tree_pss(pid: int) -> int:
    """Proportional set size in bytes of a process and all below it; 0 where the system does not tell."""
    try:
        root = psutil.Process(pid)
        return sum(pss(process.pid) for process in [root, *root.children(recursive=True)])
    except psutil.Error:
        return 0


def pss(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as lines:
            return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)
    except OSError:
        return 0
