"""The benchmark for GPUs: which cells it runs, what its tables say of them, and what README says of the tables."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


def asked(**more) -> SimpleNamespace:
    return SimpleNamespace(**{"workload": None, "dtype": None, "engine": None, "skip_exact": False} | more)


def test_everything_that_is_demanded_runs_unless_less_is_asked_for(speed):
    """K = 1, 8, 32 and 128 in both precisions, the plain loop first, stock Flower beside W2."""
    chosen = speed("gpu").chosen
    ran = {(c.workload, c.dtype): c.engines for c in chosen(asked())}
    for dtype in ("float32", "bfloat16"):
        for of_32, of_128 in (("W2g", "W2h"), ("W5", "W5h")):
            assert ran[of_32, dtype][0] == "floor" and {"k1", "k8", "k32"} < set(ran[of_32, dtype])
            assert ran[of_128, dtype] == ("k32", "k128")
        assert "flower" in ran["W2g", dtype]
    assert set(ran["W2", "float64"]) == {"floor", "k1", "k8", "k32", "k128", "auto"}
    few = chosen(asked(workload=["W5"], dtype=["bfloat16"], engine=["k8"], skip_exact=True))
    assert [(c.workload, c.dtype, c.engines) for c in few] == [("W5", "bfloat16", ("floor", "k8"))]


@pytest.mark.parametrize(("dtype", "off", "is_void"), [
    ("float32", 0.005, False), ("float32", 0.02, True), ("tf32", 0.2, False), ("tf32", 0.3, True),
    ("bfloat16", 0.2, False), ("bfloat16", 2.0, True),
])  # fmt: skip
def test_weights_that_are_further_off_than_rounding_make_a_cell_void(speed, tmp_path, dtype, off, is_void):
    """Training moved the plain loop's weight from 1 to 2; 2.0 off is the step of a wrong sign."""
    gpu = speed("gpu")
    np.savez(tmp_path / "W2g-floor.npz", **{"a": np.array([2.0]), "start:a": np.array([1.0])})
    np.savez(tmp_path / "W2g-k8.npz", a=np.array([2.0 - off]))
    gave = SimpleNamespace(engine="k8", result=lambda: {"engine": "k8", "updates": 4, "expected": 4})
    found = gpu.told(gpu.Case(1, "W2g", dtype, ("floor", "k8")), gave, tmp_path, exact=())
    assert ("void" in found) == is_void and found["dtype"] == dtype


def cell(workload, dtype, engine, sites, *walls, **more) -> dict:
    updates = {"rounds": 3, "expected": 3 * sites, "updates": 3 * sites, "walls": list(walls)}
    return {"workload": workload, "dtype": dtype, "engine": engine} | updates | more


def results(*cells, **more) -> dict:
    versions = {"versions": {"torch": "2.0"}}
    return {"device": "GPU", "rounds": 3, "quick": False, "environment": versions, "cells": list(cells)} | more


def test_a_ratio_is_of_seconds_a_site_and_the_median_of_rounds(speed):
    """W2h has 128 sites and the plain loop's 32: 4 times the sites in 0.5 times the seconds are 8 times as fast."""
    found = results(
        cell("W2g", "float32", "floor", 32, 4.0, 5.0, 60.0), cell("W2g", "float32", "k32", 32, 2.0, 1.0, 10.0),
        cell("W2h", "float32", "k128", 128, 8.0, 10.0, 120.0), cell("W2g", "bfloat16", "k32", 32, 1.0, 1.0, 1.0),
        cell("W2g", "float32", "k8", 32, 1.0, 1.0, 1.0, void="it fell"),
    )  # fmt: skip
    times = speed("gpu_report").times
    assert times(found, "W2g", "float32", "k32") == 5
    assert times(found, "W2h", "float32", "k128") == 2
    assert times(found, "W2g", "float32", "k8") is times(found, "W2g", "bfloat16", "k32") is None


def test_the_tables_say_what_is_met_missed_void_and_equal(speed):
    text = speed("gpu_report").tables(results(
        cell("W2", "float64", "floor", 8, 1.0), cell("W2", "float64", "k1", 8, 1.0, difference=2e-13),
        cell("W2g", "float32", "floor", 32, 32.0, gpu_mib=200), cell("W2g", "float32", "k32", 32, 2.0, gpu_mib=900),
        cell("W2g", "float32", "auto", 32, 2.0, rows={"speed": 64}), cell("W2g", "float32", "flower", 32, 64.0),
        cell("W2g", "float32", "k8", 32, 1.0, void="3 of 96 updates came"),
    ))  # fmt: skip
    assert "| W2g | 32 | float32 |  |  | 16 |  | 16 | 0.5 |" in text
    assert "| W2g: k32 over floor | at least 15 | 16 met |  |  |" in text
    assert "| W2g: k32 over flower | at least 40 | 32 MISSED |  |  |" in text
    assert "| W2g | float32 | 200 |  |  | 900 |  |  | 64 |" in text
    assert "plain loop and k1: at most 2.0e-13 apart" in text
    assert "W2g float32 k8 is void: 3 of 96 updates came" in text


TABLES = ("gpu", "gpu_b65cc15")  # the later without stock Flower, which did not start


def measured(name: str) -> dict:
    return json.loads((SPEED / "results" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", TABLES)
def test_the_tables_are_those_of_what_was_measured(speed, name):
    table = (SPEED / "results" / f"{name}.md").read_text(encoding="utf-8")
    assert speed("gpu_report").tables(measured(name)) + "\n" == table


def test_the_readme_says_of_the_gpu_what_its_tables_say(speed):
    """Every "N times" of the paragraph on GPUs is a ratio of the table that was named last."""
    readme = (SPEED.parents[1] / "README.md").read_text(encoding="utf-8")
    paragraph = re.search(r"On one H100 .*?\n\n", readme, re.DOTALL)[0]
    report = speed("gpu_report")
    later, earlier = paragraph.split("The [table of an earlier run]")
    for name, text, least in zip(TABLES, (later, earlier), (8, 3), strict=True):
        found = measured(name)
        ran = {(c["workload"], c["dtype"], c["engine"]) for c in found["cells"]}
        known = {report.times(found, w, d, e, a) for w, d, e in ran for a in ("floor", "flower")}
        said = re.findall(r"([\d.]+)\s+times", text)
        assert len(said) >= least and set(said) <= {f"{value:.3g}" for value in known if value}
    cells = measured(TABLES[0])["cells"]
    shares = {d: max(c.get("share") or 0 for c in cells if c["dtype"] == d) for d in report.DTYPES}
    told = re.search(
        r"in float32 to ([\d.]+) %, in TF32 to ([\d.]+) %, in bfloat16 to ([\d.]+) %", " ".join(paragraph.split())
    ).groups()
    assert told == tuple(f"{100 * share:.2g}" for share in shares.values())
    assert re.search(r"float64 the weights are (\S+) from", paragraph)[1] in report.tables(measured(TABLES[0]))


@pytest.mark.slow
def test_the_script_runs_without_a_gpu_and_its_weights_are_the_floors(tmp_path):
    command = [sys.executable, str(SPEED / "gpu.py"), "--cpu", "--quick", "--rounds", "1", "--out", str(tmp_path)]
    more = ["--workload", "W2g", "W2h", "--dtype", "float32", "--engine", "k8", "k32", "k128"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert "QUICK RUN" in done.stdout and "void" not in done.stdout
    assert float(re.search(r"at most (\S+) apart", done.stdout)[1]) < 1e-10
