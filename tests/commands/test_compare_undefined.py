"""Comparisons in which the primary score of a domain is undefined: auc of a test split that has one class."""

from __future__ import annotations

import math
import warnings

import pandas as pd
import pytest
from compare_made_runs import UNDEFINED, made_run

from fedfm.commands.compare import _outcome as outcome
from fedfm.commands.compare import tables_of, write


def made(tmp_path, **more):
    """Two settings, three seeds; of domain `void` no run has a score."""
    scores = {"fedavg": (0.8, 0.82, 0.87), "centralised": (0.9, 0.91, 0.95)}
    return [
        made_run(tmp_path, label, seed, {"sound": value, "void": UNDEFINED}, **more)
        for label, values in scores.items()
        for seed, value in enumerate(values)
    ]


def test_what_was_never_measured_neither_loses_nor_wins(tmp_path):
    table = tables_of(made(tmp_path))["transfer"].set_index("domain")
    void = table.loc["void"]
    assert void["seeds"] == 0
    assert void[["difference", "low", "high", "relative", "negative"]].isna().all()
    assert table.loc["all", "negative"] == table.loc["sound", "negative"] == 1
    assert table.loc["all", "seeds"] == 3
    assert table.loc["all", "difference"] == pytest.approx(-0.09)


@pytest.mark.parametrize("validation", [{"sound": 0.5}, {"sound": 0.5, "void": math.nan}])
def test_without_a_score_on_validation_there_is_no_target_and_nothing_is_censored(tmp_path, validation):
    runs = made(tmp_path, validation=validation)
    reach = tables_of(runs)["reach"]
    reach.to_csv(tmp_path / "reach.csv", index=False)
    read = pd.read_csv(tmp_path / "reach.csv")
    void, sound = read[read["domain"] == "void"], read[read["domain"] == "sound"]
    assert len(void) == len(sound) == 6
    assert void[["target", "reached", "rounds", "megabytes", "seconds"]].isna().all(axis=None)
    assert sound["reached"].astype(str).tolist() == ["True"] * 6
    assert sound["rounds"].tolist() == [2] * 6


def test_no_validation_at_all_leaves_the_whole_table_empty(tmp_path):
    reach = tables_of(made(tmp_path, validation={}))["reach"]
    assert len(reach) == 12
    assert reach["reached"].isna().all()


@pytest.fixture
def written(tmp_path):
    """Everything that a comparison writes and says of the runs of `made`; a warning is an error."""

    def write_all(runs):
        tables = tables_of(runs)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            write(tmp_path, runs, tables, {}, [])
            said = "\n".join(outcome(tables))
        return tmp_path, said

    return write_all


@pytest.mark.parametrize("validation", [None, {"sound": 0.5}, {}])
def test_a_domain_without_a_score_goes_through_tables_figures_report_and_console(tmp_path, written, validation):
    folder, said = written(made(tmp_path / "runs", validation=validation))
    main = (folder / "tables" / "main.md").read_text(encoding="utf-8").splitlines()
    assert main[0] == "| setting | model | sound | void | mean | worst | MB | seconds |"
    assert main[2].startswith("| fedavg | global | 0.830 ± 0.036 | - | 0.830 ± 0.036 |")
    assert main[3].startswith("| centralised | global | **0.920 ± 0.026** | - | **0.920 ± 0.026** |")
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "Highest mean over domains of the federations: fedavg (0.830)" in html
    assert "The primary score of void is undefined on its test examples." in html
    assert "nan" not in (folder / "tables" / "main.csv").read_text(encoding="utf-8") + said
    assert "&lt;NA&gt;" not in html
    for name in ("final", "worst", "transfer"):
        assert (folder / "figures" / f"{name}.svg").stat().st_size


def test_no_domain_with_a_score_is_told(tmp_path, written):
    runs = [made_run(tmp_path / "runs", name, 0, {"void": UNDEFINED}) for name in ("fedavg", "centralised")]
    folder, said = written(runs)
    assert "No domain has a score." in (folder / "report.html").read_text(encoding="utf-8")
    assert "nan" not in said


def test_all_settings_with_the_highest_printed_mean_are_bold(tmp_path, written):
    scores = {"fedavg": 0.9001, "fedprox": 0.9004, "centralised": 0.89}
    folder, _ = written([made_run(tmp_path / "runs", name, 0, {"sound": score}) for name, score in scores.items()])
    rows = (folder / "tables" / "main.md").read_text(encoding="utf-8").splitlines()[2:5]
    assert [row.count("**0.900**") for row in rows] == [3, 3, 0]  # the domain, and of one domain mean and worst
    assert "**" not in rows[2]
