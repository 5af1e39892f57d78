"""The page of a run: of one that finished, one with updates left out, one that failed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pages import Page, addresses
from sklearn.metrics import f1_score, roc_auc_score

from fedfm.cli import main
from fedfm.commands.contributions import contributions
from fedfm.commands.report import report
from fedfm.engines.local import LocalGrid
from fedfm.engines.reporting import intervals_of
from fedfm.engines.running import run
from fedfm.errors import RunError
from fedfm.federation.client_app import app
from fedfm.federation.rounds import RoundLoop
from fedfm.results.page import differences, number
from fedfm.results.predictions import load_items
from fedfm.results.run_figures import calibration
from fedfm.results.run_folder import RunFolder
from fedfm.training.bootstrap import bootstrap_interval, score_of

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import IMAGES, TEXTS, WORDS, Spoiler, tiny, train_federation


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> RunFolder:
    domains = {"medical": IMAGES, "finance": TEXTS, "ner": WORDS}
    return train_federation(tiny(tmp_path_factory.mktemp("run"), "rounds=2", **domains)).folder


def test_the_page_holds_the_numbers_of_the_run_and_no_address(done, capsys):
    assert main(["report", str(done.path)]) == 0
    file = Path(capsys.readouterr().out.strip())
    html = file.read_text(encoding="utf-8")
    assert file == done.path / "report.html"
    for scores in done.info["final"].values():
        for value in scores.values():
            assert f"<td>{number(value)}</td>" in html
    sent = done.sent
    for digest in sent["sha256"]:
        assert digest in html
    for total in sent.groupby(["site", "what"])["bytes"].sum():
        assert f"<td>{total}</td>" in html
    for about in done.info["sites"].values():
        assert about["sha256"][:16] in html
    assert addresses(html) == []
    assert "<script" not in html
    assert "body.layers" in html  # a key that is not at its default
    for name in ("drift", "timeline", "calibration", "confusion_medical", "confusion_finance", "entities_ner"):
        assert (done.path / "figures" / f"{name}.csv").exists()


def test_every_table_of_the_page_is_the_file_it_came_from(done):
    """Cell by cell: run.json and intervals.csv, rounds.csv, sent.csv."""
    tables = Page(report(done.path).read_text(encoding="utf-8")).tables
    (scores,) = tables["scores"]
    intervals, rows = done.intervals.set_index("domain"), [dict(zip(scores[0], row, strict=True)) for row in scores[1:]]
    assert {row["domain"] for row in rows} == set(done.info["final"])
    for row in rows:
        final, own = done.info["final"][row["domain"]], intervals.loc[row["domain"]]
        assert (row["primary"], row["score"]) == (own["metric"], number(own["score"]))
        assert own["score"] == final[own["metric"]]
        assert (row["low"], row["high"]) == (number(float(own["low"])), number(float(own["high"])))
        for metric in final.keys() - {row["primary"]}:
            assert row[metric] == number(final[metric]), metric
    assert tables["rounds"] == [as_shown(done.rounds)]
    totals, *each = tables["left"]
    assert each == [as_shown(own.drop(columns=["site", "domain"])) for _, own in done.sent.groupby("site")]
    for row in (dict(zip(totals[0], line, strict=True)) for line in totals[1:]):
        own = done.sent.query("site == @row['site'] and what == @row['what']")
        assert (row["messages"], row["bytes"]) == (str(len(own)), str(own["bytes"].sum()))
        assert (row["tensors"], row["together"]) == (str(own["tensors"].max()), str(own["together"].max()))


def as_shown(data) -> list[list[str]]:
    return [list(data.columns), *([number(value) for value in row] for row in data.itertuples(index=False))]


def test_a_run_leaves_its_page_and_one_that_fails_too(tmp_path):
    whole = run(tiny(tmp_path / "whole", finance=TEXTS)).folder
    html = (whole / "report.html").read_text(encoding="utf-8")
    assert "finished after 1 rounds" in html
    assert (whole / "figures" / "drift.svg").exists()
    with pytest.raises(RunError):
        run(tiny(tmp_path / "failed", "rounds=4", "local.learning-rate=1e30", "local.optimizer=sgd", finance=TEXTS))
    (page,) = (tmp_path / "failed").glob("*/report.html")
    assert "It failed: round" in page.read_text(encoding="utf-8")
    none = run(tiny(tmp_path / "none", finance=TEXTS), report=False).folder
    assert not (none / "report.html").exists()


def test_why_a_run_failed_is_told_even_where_its_page_cannot_be_written(tmp_path, monkeypatch):
    def broken(folder):
        raise OSError("disk full")

    monkeypatch.setattr("fedfm.engines.reporting.leave_report", broken)
    with pytest.raises(RunError, match="usable updates"):
        run(tiny(tmp_path, "rounds=4", "local.learning-rate=1e30", "local.optimizer=sgd", finance=TEXTS))
    assert "no report.html: OSError: disk full" in next(tmp_path.glob("*/events.jsonl")).read_text(encoding="utf-8")


def test_contributions_of_the_same_configuration_are_on_the_page(tmp_path):
    config = tiny(tmp_path, finance=TEXTS)
    folder = run(config).folder
    _, table = contributions(config.to_dict())
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    assert page.tables["contributions"] == [as_shown(table)]
    assert "contributions" not in Page(report(folder_of_other(tmp_path)).read_text(encoding="utf-8")).tables


def folder_of_other(root: Path) -> Path:
    """A run beside it of another configuration."""
    return train_federation(tiny(root, "seed=1", finance=TEXTS)).folder.path


def test_a_run_with_a_site_left_out_says_so(tmp_path):
    def spoil(delta):
        return {name: value * np.nan for name, value in delta.items()}

    done = train_federation(tiny(tmp_path, finance={**TEXTS, "sites": 2}), Spoiler("finance-1", spoil))
    html = report(done.folder.path).read_text(encoding="utf-8")
    assert "1 update was left out" in html
    assert "not finite" in html


def test_a_failed_run_has_a_page(tmp_path):
    def spoil(delta):
        return {name: value * np.nan for name, value in delta.items()}

    config = tiny(tmp_path, "rounds=2", finance={**TEXTS, "sites": 1})
    folder = RunFolder.create(config)
    with pytest.raises(RunError) as caught:
        RoundLoop(LocalGrid(Spoiler("finance-1", spoil)), config, folder).run()
    folder.fail(caught.value)
    html = report(folder.path).read_text(encoding="utf-8")
    assert "failed after 0 rounds" in html
    assert html.index('<section id="failures">') < html.index('<section id="configuration">')
    assert "0 usable updates, the minimum is 1" in html


def test_a_run_that_failed_before_it_began_has_a_page(tmp_path):
    folder = RunFolder.create(tiny(tmp_path, finance=TEXTS))
    folder.fail(RunError("no site came"))
    html = report(folder.path).read_text(encoding="utf-8")
    assert "no site came" in html
    assert "No message has left a site" in html


def test_scores_from_outcomes_are_scikit_learn_s(done):
    medical, finance = (load_items(done.path, "global", domain) for domain in ("medical", "finance"))
    labels = ["a"] * medical["probabilities"].shape[1]
    auc = roc_auc_score(medical["labels"], medical["probabilities"], multi_class="ovr", labels=range(len(labels)))
    assert score_of("image-classification", medical, labels, "auc") == pytest.approx(auc, abs=1e-6)
    truth, guess = finance["labels"], finance["probabilities"].argmax(axis=1)
    names = ["a"] * finance["probabilities"].shape[1]
    assert score_of("text-classification", finance, names, "macro_f1") == pytest.approx(
        f1_score(truth, guess, average="macro", zero_division=0)
    )


def test_the_bootstrap_of_an_accuracy_is_near_the_binomial_interval():
    """200 items, 150 right: 0.75 +- 1.96 sqrt(0.75 * 0.25 / 200) = 0.69 to 0.81."""
    right = np.arange(200) < 150
    probabilities = np.where(right[:, None], [0.9, 0.1], [0.1, 0.9]).astype(np.float32)
    items = {"probabilities": probabilities, "labels": np.zeros(200, np.int32)}
    low, high = bootstrap_interval("text-classification", items, ["a", "b"], "accuracy")
    assert (low, high) == pytest.approx((0.69, 0.81), abs=0.012)
    assert np.isnan(bootstrap_interval("text-classification", {}, ["a", "b"], "accuracy")[0])


def test_intervals_are_around_the_scores(done):
    rows = intervals_of(done)
    assert sorted(row["domain"] for row in rows) == ["finance", "medical", "ner"]
    for row in rows:
        assert row["score"] == done.info["final"][row["domain"]][row["metric"]]
        assert row["low"] <= row["score"] <= row["high"] or np.isnan(row["low"])


def test_calibration_by_hand():
    """Said 0.9 four times, right three times: ECE 0.15."""
    items = {
        "probabilities": np.array([[0.9, 0.1]] * 4, np.float32),
        "labels": np.array([0, 0, 0, 1], np.int32),
    }
    found = calibration(items)
    assert found["ece"].iloc[0] == pytest.approx(0.15, abs=1e-6)
    assert found[["said", "right", "examples"]].iloc[0].tolist() == pytest.approx([0.9, 0.75, 4])


def test_differences_name_what_is_not_usual():
    rows = differences({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 1, "d": 3}})
    assert rows == [{"key": "b.c", "value": "2", "default": "1"}]
    assert app is not None
