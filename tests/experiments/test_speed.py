"""The speed benchmark itself: equal work, operators counted, nothing void in a figure. No seconds are tested here."""

from __future__ import annotations

import csv
import json
import os
import re
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

SPEED = Path(__file__).parents[2] / "experiments" / "speed"


def small(speed, name: str, dtype: str = "float64"):
    workloads = speed("workloads")
    return workloads.replace(workloads.quick(workloads.WORKLOADS[name]), dtype=dtype)


def moved(speed, workload, rounds: int) -> dict:
    """The floor's weights after `rounds`, by fedfm's names."""
    peers = speed("peers")
    _, state = speed("floor").run(workload, peers.start_state(workload), rounds, False)
    return {peers.fedfm_name(name): value.numpy() for name, value in state.items()}


@pytest.mark.parametrize("name", ["W1", "W2t", "W3", "W4-0", "W4-2"])
def test_floor_and_fedfm_come_to_the_same_weights(speed, name):
    """Float64, two rounds, several sites at once; ragged texts with unequal sites, and frozen layers, included."""
    workload = small(speed, name)
    floor = moved(speed, workload, 2)
    start = speed("peers").start_state(workload)
    found = speed("fedfm_engines").run(workload, "k8", 2)
    assert found["updates"] == found["expected"] == 2 * workload.sites
    assert found["weights"].keys() == floor.keys()
    assert max(np.abs(floor[n] - start[n].numpy()).max() for n in floor) > 1e-3
    assert max(np.abs(found["weights"][n] - floor[n]).max() for n in floor) <= 1e-10


def test_padding_to_the_maximum_changes_the_plain_loop_no_more_than_rounding(speed):
    workload = small(speed, "W3")
    floor, peers = speed("floor"), speed("peers")
    start = peers.start_state(workload)
    (_, padded), (_, trimmed) = (floor.run(workload, start, 1, tuned) for tuned in (False, True))
    shapes = {tuple(b[0]["input_ids"].shape) for s in peers.sites_batches(workload, 1) for b in s.batches}
    assert {width for _, width in shapes} == {workload.max_length}
    assert max(float((padded[n] - trimmed[n]).abs().max()) for n in padded) <= 1e-10


@pytest.mark.parametrize("name", ["W2t", "W3"])
def test_texts_have_the_length_that_was_planned(speed, name):
    peers, workloads = speed("peers"), speed("workloads")
    workload = small(speed, name)
    sites = workloads.site_names(workload)
    lengths = [peers._features(workload, site).lengths() for site in sites]
    if workload.ragged:
        assert len(set(np.concatenate(lengths))) > 4 and max(map(max, lengths)) <= 64
    else:
        assert set(np.concatenate(lengths)) == {workload.length}
    assert [len(own) for own in lengths] == [workload.examples(number) for number in range(len(sites))]


@pytest.mark.parametrize(("engine", "sites", "most"), [("k1", 2, 330), ("k8", 8, 45), ("k32", 32, 12)])
def test_operators_of_a_step_of_the_launch_bound_twin(speed, engine, sites, most):
    """Issue 3: at most 45 and 12 operators for each site's step at K = 8 and 32."""
    workloads = speed("workloads")
    workload = workloads.replace(workloads.WORKLOADS["W2t"], sites=sites)
    assert 1 < speed("operators").of_fedfm(workload, engine) <= most


def test_operators_of_the_floor_are_counted(speed):
    """fedfm's K = 1 must need fewer than the plain loop; one with fused optimisers needs fewer than one without."""
    workload, operators = small(speed, "W2t", "float32"), speed("operators")
    plain, tuned = (operators.of_floor(workload, tuned) for tuned in (False, True))
    assert operators.of_fedfm(workload, "k1") < tuned < plain


def cell(engine: str, cpus: list[float], **more) -> dict:
    return {
        "workload": "W2t", "engine": engine, "repetition": 0, "cpus": cpus, "walls": cpus, "peak_mib": 100,
        "start_up": 1.0, "load": 0.5, "updates": 12, "expected": 12, "rounds": 3,
    } | more  # fmt: skip


def results(*cells: dict, operators: dict | None = None, exact: dict | None = None) -> dict:
    return {"cells": list(cells), "operators": operators or {}, "exact": exact or {}, "notes": []}


def met(speed, found: dict) -> dict[str, str]:
    return {row["demand"]: row["met"] for row in speed("demands").demand_rows(found)}


def test_a_ratio_is_that_of_rounds_of_the_same_number(speed):
    """Rounds that were slow for both do not count against either: 2, 2 and 4 times, where the medians say 4."""
    floor, k1 = cell("floor", [2.0, 20.0, 8.0]), cell("k1", [1.0, 10.0, 2.0])
    assert speed("demands").ratios([floor, k1], "W2t", "k1", "floor", "cpus") == [2, 2, 4]
    assert met(speed, results(floor, k1)) == {"W2t: k1 over floor, CPU seconds": "met"}
    assert met(speed, results(floor, cell("k1", [2.0, 20.0, 8.0]))) == {"W2t: k1 over floor, CPU seconds": "MISSED"}


def test_a_ratio_just_below_what_is_wanted_does_not_look_as_if_it_were_that(speed):
    found = results(cell("floor", [7.996]), cell("k8", [1.0]))
    (row,) = speed("demands").demand_rows(found)
    assert (row["wanted"], row["seen"], row["met"]) == (">= 8x", "7.996x", "MISSED")
    assert speed("demands")._beside(8.0004, 8.0) == "8x"


def test_a_void_cell_gives_no_figure_and_its_demand_is_missed(speed):
    found = results(cell("floor", [8.0]), cell("k8", [0.1], void="11 of 12 updates came"))
    assert met(speed, found) == {"W2t: k8 over floor, CPU seconds": "MISSED"}
    row = speed("report").summary(found)[1]
    assert (row["ratio"], row["best"], row["void"]) == ("", "", "11 of 12 updates came")


def test_demands_of_operators_equality_and_bits(speed):
    pair = [cell(e, [1.0], workload="W4-1", sha256=sha) for e, sha in (("k8", "a"), ("k8-uncached", "b"))]
    rows = met(speed, results(*pair, operators={"W2t k8": 46.0, "W2t k32": None}, exact={"W1": {"k1": 1e-11, "k8": 1}}))
    assert rows == {
        "W4-1: k8 over k8-uncached, CPU seconds": "MISSED",
        "W4-1: weights of k8 and k8-uncached": "MISSED",
        "W2t k8: operators of a site's step": "MISSED",
        "W2t k32: operators of a site's step": "MISSED",
        "W1: k1, float64 difference to the floor": "met",
        "W1: k8, float64 difference to the floor": "MISSED",
    }


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"a": [1.0, 2.0]}, None),
        ({"a": [1.0, 1.9]}, "of the way"),  # a site whose last step is missing
        ({"b": [1.0, 2.0]}, "nan"),
        ({"a": [1.0, np.nan]}, "nan"),
    ],
)
def test_weights_that_are_not_the_floors_make_a_row_void(speed, tmp_path, other, why):
    np.savez(tmp_path / "W1-floor.npz", **{"a": np.array([1.0, 2.0]), "start:a": np.array([1.0, 1.0])})
    np.savez(tmp_path / "W1-k1.npz", **{name: np.array(values) for name, values in other.items()})
    told = {"engine": "k1", "updates": 4, "expected": 4}
    assert why in speed("harness").judged(told, "W1", tmp_path).get("void", "") if why else True
    assert ("void" in speed("harness").judged(told, "W1", tmp_path)) == bool(why)


def test_whoever_is_the_floor_in_float64_may_be_further_off_in_float32(speed, tmp_path, monkeypatch):
    """3 % of the way are too much, and are not where float64 was equal; 7 % always are."""
    harness = speed("harness")

    class Cell:
        alive = False

        def __init__(self, workload, engine, rounds, scratch):
            self.engine, self.told = engine, {"engine": engine, "updates": 4, "expected": 4}

        def wait(self):
            pass

        def result(self):
            return self.told

    monkeypatch.setattr(harness, "Cell", Cell)
    np.savez(tmp_path / "W1-floor.npz", **{"a": np.array([1.0, 2.0]), "start:a": np.array([1.0, 1.0])})
    for engine, end in (("k1", 1.97), ("k8", 1.97), ("auto", 1.93)):
        np.savez(tmp_path / f"W1-{engine}.npz", a=np.array([1.0, end]))
    found = harness.side_by_side("W1", ["k1", "k8", "auto"], 3, tmp_path, proven=["k1", "auto"])
    assert ["void" in cell for cell in found] == [False, True, True]


def test_missing_updates_make_a_row_void(speed, tmp_path):
    told = speed("harness").judged({"engine": "k1", "updates": 3, "expected": 4}, "W1", tmp_path)
    assert told["void"] == "3 of 4 updates came"


def test_a_report_is_readable_and_says_what_is_void(speed, tmp_path):
    found = results(cell("floor", [2.0, 2.0]), cell("k1", [1.0, 1.0]), cell("k8", [1.0], void="it fell"))
    speed("report").write_report(found, tmp_path, quick=True)
    written = json.loads((tmp_path / "speed.json").read_text())
    assert written["threads"] == 1 and written["environment"]["versions"]["torch"]
    assert [row["ratio"] for row in written["rows"]] == [1.0, 2.0, ""]
    text = (tmp_path / "speed.md").read_text()
    assert (
        "it fell" in text
        and "QUICK RUN" in text
        and "| 1 | W2t: k1 over floor, CPU seconds | >= 1.2x | 2x | met |" in text
    )
    assert (tmp_path / "speed.csv").read_text().count("\n") == 4
    assert all((tmp_path / f"speed.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_what_is_not_run_anew_is_kept_and_says_at_which_commit_it_was_measured(speed, tmp_path, monkeypatch):
    report = speed("report")
    known = report.machine() | {"commit": "a" * 40}
    monkeypatch.setattr(report, "machine", lambda: known)
    first = [cell("floor", [2.0]), cell("k1", [1.0]), cell("floor", [3.0], workload="W1")]
    report.write_report(results(*first, operators={"W2t k8": 30.0, "W1 k1": 9.0}, exact={"W1": {}}), tmp_path, False)
    found = report.earlier(tmp_path, ["W2t"])
    assert [(c["workload"], c["cpus"], c["commit"]) for c in found["cells"]] == [("W1", [3.0], "a" * 40)]
    assert (found["operators"], found["exact"]) == ({"W1 k1": 9.0}, {"W1": {}})
    found["cells"] += [cell("floor", [5.0], commit="b" * 40)]
    report.write_report(found, tmp_path, False)
    assert "\nAt commit aaaaaaa: W1.\nAt commit bbbbbbb: W2t.\n" in (tmp_path / "speed.md").read_text()
    known["hardware"] = known["hardware"] | {"cores": 1000}
    with pytest.raises(ValueError, match="other hardware"):
        report.earlier(tmp_path, ["W2t"])
    with pytest.raises(ValueError, match="is not there"):
        report.earlier(tmp_path / "elsewhere", ["W2t"])


def test_the_readme_quotes_the_table_and_counts_the_goals():
    """Each ratio that stands in README's table is the one in speed.csv; and so many goals are met of so many."""
    readme, results = (SPEED.parents[1] / "README.md").read_text(encoding="utf-8"), SPEED / "results"
    with (results / "speed.csv").open(encoding="utf-8") as file:
        measured = {(row["workload"], row["engine"]): row["ratio"] for row in csv.DictReader(file)}
    rows = re.findall(r"^\| (W\S+): [^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|([^|]*)\|$", readme, re.MULTILINE)
    quoted = 0
    for workload, *cells in rows:
        many = re.search(r"\((\w+)\)", cells[1])
        for cell, engine in zip(cells, ["k1", many and many[1], "flower", "pfl"], strict=True):
            if cell.strip():
                assert float(cell.split("x")[0]) == float(measured[workload, engine]), (workload, engine)
                quoted += 1
    assert quoted > 15
    said = [int(n) for n in re.search(r"Of (\d+) goals (\d+) are met", readme).groups()]
    goals = re.findall(r"\| (met|MISSED) \|$", (results / "speed.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert said == [len(goals), goals.count("met")]


@pytest.mark.parametrize("engine", ["k1", "auto"])
def test_idle_sites_all_answer_and_the_run_ends(speed, engine):
    """S1: sites that train nothing, of which one is scored at the end."""
    found = speed("s1").run(engine, 3, 12, 12)
    assert found["updates"] == found["expected"] == 36
    assert len(found["cpus"]) == len(found["walls"]) == 3 and min(found["cpus"]) > 0


def test_looking_at_the_memory_of_a_cell_takes_little_of_its_time(speed, monkeypatch):
    """Two workers on two cores would wait for who looks: 45 ms three times a second made them a tenth slower."""
    harness, looks = speed("harness"), []

    def look(pid: int) -> int:
        looks.append(pid)
        time.sleep(0.01)
        return 2**20 * len(looks)

    monkeypatch.setattr(harness, "tree_pss", look)
    monkeypatch.setattr(harness, "LOOK_SECONDS", 0.01)
    cell = object.__new__(harness.Cell)
    hear, says = os.pipe()
    cell._hear, cell.peak, cell.process = hear, 0, SimpleNamespace(pid=7)
    done = threading.Timer(1.2, os.write, (says, b"d"))
    done.start()
    assert cell._next() == b"d"
    done.join()
    os.close(hear), os.close(says)
    assert 2 <= len(looks) <= 5 and cell.peak == 2**20 * len(looks)  # each time for 10 ms, and half a second's rest


@pytest.mark.slow
def test_two_cells_take_turns_and_one_that_fails_says_why(speed, tmp_path):
    found = speed("harness").side_by_side("W1", ["floor", "k1", "nonsense"], 3, tmp_path, "--quick")
    floor, k1, broken = found
    assert "void" not in k1 and len(k1["walls"]) == len(floor["walls"]) == 1 and k1["peak_mib"] > 0
    assert "nonsense" in broken["void"]
