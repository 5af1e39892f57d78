"""Comparisons in which the primary score of a domain is undefined: auc of a test split that has one class."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from compare_made_runs import UNDEFINED, made_run

from fedfm.commands.compare import tables_of


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
