"""The run folder: columns, torn files, crashes, resuming."""

from __future__ import annotations

import json
import math
import os
import re

import numpy as np
import pytest
from fake_run import METRICS, ROUNDS, config, round_row, score_rows

from fedfm.errors import UserError
from fedfm.results import files
from fedfm.results import run_folder as module
from fedfm.results.run_folder import METRIC_COLUMNS, ROUND_COLUMNS, RunFolder


@pytest.fixture
def empty(tmp_path) -> RunFolder:
    return RunFolder.create(config(), tmp_path / "runs")


def test_create_names_the_folder_and_writes_what_runs_again(empty):
    assert re.fullmatch(r"\d{8}-\d{6}-fedavg-[0-9a-f]{6}", empty.path.name)
    assert empty.config == config()
    info = empty.info
    assert (info["name"], info["status"], info["seed"]) == (empty.path.name, "running", 0)
    assert info["config_sha256"] == config().sha256()
    assert info["versions"]["python"]
    assert info["hardware"]["cores"] >= 1
    assert info["started"].endswith("+00:00")


def test_create_uses_the_configured_folder(tmp_path):
    folder = RunFolder.create(config().replace(f"runs.folder={tmp_path / 'mine'}"))
    assert folder.path.parent == tmp_path / "mine"


def test_create_draws_another_id_when_the_first_is_taken(tmp_path, monkeypatch):
    ids = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(module.secrets, "token_hex", lambda size: next(ids))
    monkeypatch.setattr(module, "datetime", _Fixed)
    first, second = RunFolder.create(config(), tmp_path), RunFolder.create(config(), tmp_path)
    assert [f.path.name for f in (first, second)] == [f"20260102-030405-fedavg-{id}" for id in ("aaaaaa", "bbbbbb")]


class _Fixed(module.datetime):
    @classmethod
    def now(cls, zone=None):
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=zone)


def test_create_where_a_file_stands_is_the_users_error(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(UserError, match=r"cannot make a run folder.*\n.*mend: .*runs\.folder="):
        RunFolder.create(config(), tmp_path / "runs")


def test_open_reads_what_was_created(folder):
    again = RunFolder.open(str(folder.path))
    assert again == folder
    assert again.info["status"] == "finished"


def test_open_of_something_else_points_to_the_newest_run(folder, tmp_path):
    with pytest.raises(UserError, match="there is no such folder\n    mend: give a folder") as error:
        RunFolder.open(tmp_path / "nothing")
    assert error.value.exit_code == 2
    with pytest.raises(UserError, match=f"no run.json.*\n    mend: the newest run there is .*{folder.path.name}"):
        RunFolder.open(folder.path.parent)


def test_open_of_a_damaged_run_says_which_file(empty):
    (empty.path / "run.json").write_text('{"name": ')
    with pytest.raises(UserError, match=r"run\.json: damaged: .*\n    mend: "):
        RunFolder.open(empty.path)


def test_update_merges_and_keeps_strict_json(empty):
    empty.update(bytes_up=np.int64(12), final={"medical": {"auc": np.float64("nan"), "accuracy": np.float32(0.5)}})
    empty.update(status="finished", seconds=1.5)
    text = (empty.path / "run.json").read_text()
    info = json.loads(text, parse_constant=pytest.fail)
    assert info["bytes_up"] == 12
    assert info["final"] == {"medical": {"auc": None, "accuracy": 0.5}}
    assert (info["status"], info["seconds"], info["name"]) == ("finished", 1.5, empty.path.name)


def test_update_refuses_an_unknown_status_and_leaves_the_file(empty):
    with pytest.raises(ValueError, match='"done" is none of running, finished'):
        empty.update(status="done")
    assert empty.info["status"] == "running"


@pytest.mark.parametrize("moment", ["write", "replace"])
def test_a_crash_inside_update_leaves_the_old_file_whole(empty, monkeypatch, moment):
    before = empty.info

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync" if moment == "write" else "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        empty.update(status="failed", reason="x")
    monkeypatch.undo()
    assert RunFolder.open(empty.path).info == before
    empty.update(status="interrupted")
    assert empty.info["status"] == "interrupted"
    assert not list(empty.path.glob("*.tmp"))
    assert not list(empty.path.glob(".*.tmp"))


def test_columns_are_those_of_the_contract(folder):
    first_lines = [(folder.path / name).read_text().partition("\n")[0] for name in ("rounds.csv", "metrics.csv")]
    assert first_lines == [
        "round,seconds,bytes_down,bytes_up,sites_asked,sites_used,sites_dropped,loss,virtual_seconds,aggregation_error",
        "round,scope,name,domain,split,metric,value,num_examples,model",
    ]
    assert tuple(folder.rounds.columns) == ROUND_COLUMNS
    assert tuple(folder.metrics.columns) == METRIC_COLUMNS


def test_numbers_come_back_bit_for_bit(folder):
    written = [row["value"] for round in range(1, ROUNDS + 1) for row in score_rows(round, "validation")]
    read = folder.metrics
    assert read.loc[read["split"] == "validation", "value"].tolist() == written
    rounds = folder.rounds.dropna(axis="columns")  # some columns are those of some strategies
    assert rounds.to_dict("records") == [round_row(round) for round in range(1, ROUNDS + 1)]
    assert folder.rounds["bytes_down"].dtype == np.int64


def test_missing_cells_nan_infinities_and_domains_named_na(empty):
    empty.add_round({"round": 0, "seconds": np.float64(0.1)})
    empty.add_round({"round": 1, "loss": math.inf})
    assert math.isnan(empty.rounds["loss"][0])
    assert empty.rounds["loss"][1] == math.inf
    assert empty.rounds["seconds"][0] == 0.1
    rows = [{"round": 1, "domain": name, "name": name, "value": math.nan} for name in ("NA", "null", "")]
    empty.add_metrics(rows)
    assert empty.metrics["domain"].tolist() == ["NA", "null", ""]
    assert empty.metrics["value"].isna().all()


def test_tables_of_a_run_that_has_not_begun_are_empty(empty):
    assert tuple(empty.rounds.columns) == ROUND_COLUMNS
    assert empty.rounds.empty
    assert tuple(empty.metrics.columns) == METRIC_COLUMNS
    assert empty.metrics.empty
    empty.add_metrics([])
    assert empty.metrics.empty


def test_unknown_columns_are_refused_before_anything_is_written(empty):
    with pytest.raises(ValueError, match=r"rounds\.csv has no column byte_up, colour; its columns are round, seconds"):
        empty.add_round({"round": 1, "byte_up": 3, "colour": "red"})
    with pytest.raises(ValueError, match=r"metrics\.csv has no column split_"):
        empty.add_metrics([{"round": 1}, {"round": 1, "split_": "test"}])
    with pytest.raises(ValueError, match="names no round"):
        empty.add_round({"seconds": 1})
    assert not (empty.path / "rounds.csv").exists()
    assert not (empty.path / "metrics.csv").exists()


@pytest.mark.parametrize("kept", [1, 7, 40])
def test_a_torn_last_row_is_not_read_and_gives_way_to_the_next(folder, kept):
    path = folder.path / "rounds.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"7,2.375,2170000,2030000,7,7,0,0.2306867199999999"[:kept])
    assert len(folder.rounds) == ROUNDS
    folder.add_round(round_row(7))
    assert folder.rounds["round"].tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert path.read_bytes().startswith(whole)


def test_a_torn_header_is_written_anew(empty):
    (empty.path / "rounds.csv").write_text("round,sec")
    empty.add_round(round_row(1))
    assert empty.rounds["round"].tolist() == [1]


def test_a_torn_line_longer_than_a_block_is_cut_off(empty):
    empty.event("warning", message="a")
    path = empty.path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b"x" * 10_000)
    empty.event("warning", message="b")
    assert [json.loads(line)["message"] for line in path.read_text().splitlines()] == ["a", "b"]


def test_truncate_after_drops_later_rounds_and_all_test_scores(folder):
    path = folder.path / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"6,site,medi")
    folder.truncate_after(4)
    assert folder.rounds["round"].tolist() == [1, 2, 3, 4]
    assert sorted(set(folder.metrics["round"])) == [1, 2, 3, 4]
    assert set(folder.metrics["split"]) == {"validation"}
    assert len(folder.metrics) == 4 * len(score_rows(1, "validation"))


def test_a_resumed_run_leaves_the_same_tables_as_one_that_was_never_killed(folder):
    before = [(folder.path / name).read_bytes() for name in ("rounds.csv", "metrics.csv")]
    folder.truncate_after(3)
    for round in range(4, ROUNDS + 1):
        folder.add_round(round_row(round))
        folder.add_metrics(score_rows(round, "validation"))
    folder.add_metrics(score_rows(ROUNDS, "test"))
    assert [(folder.path / name).read_bytes() for name in ("rounds.csv", "metrics.csv")] == before


def test_a_crash_inside_truncate_leaves_the_table_whole(folder, monkeypatch):
    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        folder.truncate_after(2)
    assert len(folder.rounds) == ROUNDS


def test_truncate_of_a_run_without_tables_does_nothing(empty):
    empty.truncate_after(0)
    assert not (empty.path / "rounds.csv").exists()


def test_an_event_is_returned_as_its_reader_sees_it(empty):
    event = empty.event(
        "round-finished", round=np.int64(1), loss=float("nan"), scores={"ner": np.float32(0.5)}, sites=("a",)
    )
    line = (empty.path / "events.jsonl").read_text()
    assert line.endswith("\n")
    assert json.loads(line, parse_constant=pytest.fail) == event
    assert event == {
        "time": event["time"],
        "event": "round-finished",
        "round": 1,
        "loss": None,
        "scores": {"ner": 0.5},
        "sites": ["a"],
    }
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", event["time"])


def test_an_event_of_things_that_json_does_not_know_is_refused(empty):
    with pytest.raises(TypeError, match="object has no place in JSON"):
        empty.event("warning", message=object())
    assert not (empty.path / "events.jsonl").exists()


def test_nothing_of_the_users_home_or_name_is_recorded(empty):
    text = (empty.path / "run.json").read_text()
    assert os.path.expanduser("~") not in text
    assert os.uname().nodename not in text


def test_every_score_has_its_row(folder):
    finals = folder.metrics.query("split == 'test' and scope == 'domain'")
    assert {(row.domain, row.metric) for row in finals.itertuples()} == {
        (domain, metric) for domain, names in METRICS.items() for metric in names
    }


def test_one_process_writes_at_a_time(tmp_path):
    """A lock of the system: held by another open file it is refused, after its end it is free."""
    folder = RunFolder.create(config(), tmp_path)
    with folder.lock(), pytest.raises(UserError, match="another process is writing to this run"), folder.lock():
        pass
    with folder.lock():
        pass
