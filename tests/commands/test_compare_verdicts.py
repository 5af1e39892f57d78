"""What a comparison claims in words, and what the correction for many pairs makes of it."""

from __future__ import annotations

import re

import pytest
from compare_made_runs import made_run

from fedfm.commands.compare import _outcome as outcome
from fedfm.commands.compare import tables_of
from fedfm.results.comparison_report import write_comparison_report

# four seeds; fedavg is lower than each bound by gaps whose interval excludes zero, hardly (0.02 +- sd) or clearly
CLOSE = {
    "fedavg": (0.80, 0.81, 0.82, 0.83),
    "per-domain": (0.822, 0.816, 0.848, 0.848),
    "centralised-joint": (0.83, 0.80, 0.84, 0.82),
    "centralised": (0.82, 0.80, 0.83, 0.85),
}
CLEAR = {"fedavg": (0.6, 0.61, 0.62, 0.63), "centralised": (0.8, 0.8101, 0.8202, 0.8299)}


def runs_of(folder, scores):
    return [
        made_run(folder, label, seed, {"sound": value})
        for label, values in scores.items()
        for seed, value in enumerate(values)
    ]


@pytest.fixture
def told(tmp_path):
    def tell(scores):
        runs = runs_of(tmp_path / "runs", scores)
        tables = tables_of(runs)
        html = write_comparison_report(tmp_path, runs, tables, {}, []).read_text(encoding="utf-8")
        (lead,) = re.findall(r'<p class="lead">(.*?)</p>', html)
        return tables["pairs"], outcome(tables), lead

    return tell


def test_a_difference_that_does_not_survive_the_correction_is_never_claimed_without_saying_so(told):
    pairs, lines, lead = told(CLOSE)
    row = pairs.query("domain == 'sound' and left == 'fedavg' and right == 'per-domain'").iloc[0]
    assert row["better"] == "per-domain"  # by its own interval
    assert row["p_t"] < 0.05 <= row["p_t_holm"]
    caution = f"(by its uncorrected interval alone: Holm p = {row['p_t_holm']:.2g})"
    assert f"Against per-domain: better in no domain, worse in sound {caution}, else undecided." in lead
    (line,) = (line for line in lines if line.startswith("fedavg - per-domain"))
    assert line.endswith(f"4 paired seeds {caution}")
    assert "means of domains that differ: 1 of 6 pairs by the interval, 0 after Holm's correction" in lines


def test_a_difference_that_survives_it_is_claimed_plainly(told):
    pairs, lines, lead = told(CLEAR)
    assert (pairs["p_t_holm"] < 0.05).all()
    assert "Against centralised: better in no domain, worse in sound, else undecided." in lead
    assert "means of domains that differ: 1 of 1 pairs by the interval, 1 after Holm's correction" in lines
    assert not any("uncorrected" in line for line in lines)
