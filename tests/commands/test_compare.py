"""`fedfm compare` on a tiny federation: cells, tables, what is run again."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from compare_helpers import GRID, tiny_source
from pages import Page, addresses
from scipy import stats
from statsmodels.stats.multitest import multipletests

from fedfm.commands.compare import compare
from fedfm.results.page import number
from fedfm.results.run_folder import RunFolder

pytestmark = pytest.mark.usefixtures("small_data")


@pytest.fixture(scope="module")
def done(tmp_path_factory, small_data):
    return compare(tiny_source(tmp_path_factory.mktemp("compare")), GRID)


def test_every_cell_is_an_ordinary_run_folder(done):
    runs = [RunFolder.open(file.parent) for file in done.folder.glob("runs/*/*/run.json")]
    assert len(runs) == 9
    assert {run.info["status"] for run in runs} == {"finished"}
    assert done.cells["cell"].nunique() == 9
    assert not done.failed


def test_the_cells_are_the_runs_own_numbers(done):
    for file in done.folder.glob("runs/*/*/run.json"):
        run = RunFolder.open(file.parent)
        rows = done.cells[done.cells["run"] == run.path.name]
        for model, final in (("global", run.info["final"]), ("personal", run.info["final_personal"])):
            own = rows[rows["model"] == model]
            if run.info["strategy"] == "local-only" and model == "global":
                assert not len(own)
                continue
            for domain, scores in (final or {}).items():
                table = own[own["domain"] == domain].set_index("metric")["value"]
                assert table.to_dict() == pytest.approx(scores, nan_ok=True)


def test_worst_site_and_gini_are_of_the_sites_own_rows(done):
    for row in done.cells.dropna(subset="worst_site").itertuples():
        metrics = RunFolder.open(done.folder / "runs" / row.cell / row.run).metrics
        sites = metrics.query(
            "scope == 'site' and split == 'test' and domain == @row.domain and metric == @row.metric "
            "and model == @row.model"
        )["value"].dropna()
        assert len(sites) == 2
        worst = sites.max() if row.metric == "loss" else sites.min()
        assert row.worst_site == pytest.approx(worst)
        if row.metric != "loss" and sites.mean() > 0:  # of two: their gap over twice their sum
            assert row.gini == pytest.approx(abs(np.diff(sites)[0]) / (2 * sites.sum()))


def test_the_statistics_are_scipy_s_on_the_cells(done):
    shown = done.cells[done.cells["shown"] & done.cells["primary"]]
    for row in done.summary[done.summary["shown"] & done.summary["primary"]].itertuples():
        values = shown[(shown["setting"] == row.setting) & (shown["domain"] == row.domain)]["value"]
        assert (row.seeds, row.mean, row.sd) == pytest.approx((3, values.mean(), values.std()))
        if values.std() > 0:
            expected = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
            assert (row.low, row.high) == pytest.approx(expected)
    assert len(done.pairs) == 3 * 4  # of three settings, in two domains, their mean and the worst
    tested = 0
    for row in done.pairs.itertuples():
        left, right = (
            shown[(shown["setting"] == name) & (shown["domain"] == row.domain)].sort_values("seed")["value"]
            for name in (row.left, row.right)
        )
        gaps = left.to_numpy() - right.to_numpy()
        assert row.difference == pytest.approx(gaps.mean())
        if np.ptp(gaps) > 1e-9:
            tested += 1
            assert row.p_t == pytest.approx(stats.ttest_rel(left, right).pvalue)
            assert row.p_wilcoxon == pytest.approx(stats.wilcoxon(left, right).pvalue)
            assert (row.low, row.high) == pytest.approx(stats.ttest_1samp(gaps, 0).confidence_interval())
            excluded = row.low > 0 or row.high < 0
            assert (row.better in (row.left, row.right)) == excluded
    assert tested >= 6
    for name in ("p_t", "p_wilcoxon"):
        known = done.pairs[done.pairs[name].notna()]
        assert known[f"{name}_holm"].to_list() == pytest.approx(multipletests(known[name], method="holm")[1])


def test_the_cost_to_the_target_is_that_of_the_first_round_there(done):
    """95 % of the best setting's mean at the end; of one that never gets there the whole run, marked."""
    ends, curves = {}, {}
    for run in done.cells.query("shown and primary").drop_duplicates("cell").itertuples():
        folder = RunFolder.open(done.folder / "runs" / run.cell / run.run)
        rows = folder.metrics.query("scope == 'domain' and split == 'validation' and model == @run.model")
        for domain, metric in folder.info["primary"].items():
            own = rows[(rows["domain"] == domain) & (rows["metric"] == metric)].set_index("round")["value"]
            curves[run.cell, domain] = own, folder.rounds.set_index("round")
            ends.setdefault(domain, {}).setdefault(run.setting, []).append(own.iloc[-1])
    assert len(done.reach) == len(curves) == 18
    for row in done.reach.itertuples():
        curve, rounds = curves[row.cell, row.domain]
        assert row.target == pytest.approx(0.95 * max(np.mean(values) for values in ends[row.domain].values()))
        there = [number for number, value in curve.items() if value >= row.target]
        assert row.reached == bool(there)
        assert row.rounds == (there[0] if there else curve.index[-1])
        assert row.seconds == pytest.approx(rounds["seconds"].loc[: row.rounds].sum())
        sent = rounds["bytes_up"] + rounds["bytes_down"]
        assert row.megabytes == pytest.approx(sent.loc[: row.rounds].sum() / 1e6)


def test_transfer_is_against_every_bound_that_is_there(done):
    table = done.transfer
    assert set(table["bound"]) == {"local-only", "centralised"}
    shown = (
        done.cells[done.cells["shown"] & done.cells["primary"]]
        .set_index(["setting", "domain", "seed"])["value"]
        .sort_index()
    )
    row = table.query("setting == 'fedavg' and bound == 'centralised' and domain == 'finance'").iloc[0]
    gaps = shown["fedavg", "finance"] - shown["centralised", "finance"]
    assert row["difference"] == pytest.approx(gaps.mean())
    assert row["relative"] == pytest.approx((gaps / shown["centralised", "finance"]).mean())
    assert (row["low"], row["high"]) == pytest.approx(stats.ttest_1samp(gaps, 0).confidence_interval())
    whole = table.query("setting == 'fedavg' and bound == 'local-only' and domain == 'all'").iloc[0]
    parts = table.query("setting == 'fedavg' and bound == 'local-only' and domain != 'all'")
    assert whole["negative"] == pytest.approx((parts["difference"] < 0).mean())
    for name in ("difference", "relative"):
        assert whole[name] == pytest.approx(parts[name].mean())


def shown(data: pd.DataFrame) -> list[list[str]]:
    """A table as a page must show it."""
    return [list(data.columns), *([number(value) for value in row] for row in data.itertuples(index=False))]


def test_every_table_of_the_report_is_the_csv_it_came_from(done):
    """Cell by cell; what a table sums up is summed up here once more, from the file."""
    tables = Page((done.folder / "report.html").read_text(encoding="utf-8")).tables
    read = {name: pd.read_csv(done.folder / f"{name}.csv", keep_default_na=False, na_values=[""])
            for name in ("cells", "pairs", "transfer", "reach", "tables/main")}  # fmt: skip
    main = pd.read_csv(done.folder / "tables" / "main.csv", dtype=str, keep_default_na=False)
    assert tables["scores"] == [shown(main)]
    (pairs,) = tables["differences"]
    assert pairs == shown(read["pairs"][pairs[0]])
    assert {"difference", "low", "high", "p_t", "p_t_holm", "p_wilcoxon_holm", "better"} <= set(pairs[0])
    assert tables["transfer"] == [shown(read["transfer"])]

    (reach,) = tables["reach"]
    assert len(reach) == 1 + 3 * 2
    for row in (dict(zip(reach[0], line, strict=True)) for line in reach[1:]):
        own = read["reach"].query("setting == @row['setting'] and domain == @row['domain']")
        assert row["reached"] == str(own["reached"].sum())
        for name in ("target", "rounds", "megabytes", "seconds"):
            assert row[name] == number(float(own[name].mean()))
    (budget,) = tables["budget"]
    for row in (dict(zip(budget[0], line, strict=True)) for line in budget[1:]):
        for domain in ("finance", "ner"):
            own = read["cells"].query("setting == @row['setting'] and domain == @domain and shown")
            assert row[domain] == number(float(own["steps"].mean()))


def test_the_sentence_of_the_report_is_the_summary(done):
    html = (done.folder / "report.html").read_text(encoding="utf-8")
    means = done.summary.query("domain == 'mean' and shown").set_index("setting")["mean"]
    assert f"Highest mean over domains of the federations: fedavg ({means['fedavg']:.3f})" in html


def test_the_main_table_is_the_summary_and_bold_is_the_highest(done):
    main = pd.read_csv(done.folder / "tables" / "main.csv", dtype=str).set_index("setting")
    rows = done.summary[done.summary["shown"] & done.summary["primary"]]
    for row in rows.itertuples():
        assert main.loc[row.setting, row.domain] == f"{row.mean:.3f} ± {row.sd:.3f}"
    text = (done.folder / "tables" / "main.md").read_text(encoding="utf-8")
    for _, own in rows.groupby("domain"):
        best = own.loc[own["mean"].idxmax()]
        assert f"**{best['mean']:.3f} ± {best['sd']:.3f}**" in text


def test_the_report_stands_alone_beside_its_figures_and_tables(done):
    html = (done.folder / "report.html").read_text(encoding="utf-8")
    assert addresses(html) == []
    assert "<script" not in html
    for name in ("final", "curves", "worst", "traffic", "transfer"):
        assert all((done.folder / "figures" / f"{name}.{kind}").stat().st_size for kind in ("png", "svg", "csv"))
    tex = (done.folder / "tables" / "main.tex").read_text(encoding="utf-8")
    assert tex.count(r"\\") == 4
    assert r"\toprule" in tex


def test_nothing_that_is_done_is_run_again_and_a_stopped_cell_goes_on(done, tmp_path, monkeypatch):
    copied = tmp_path / "all"
    shutil.copytree(done.folder.parent, copied)
    root = copied / done.folder.name
    config = tiny_source(copied)
    lines: list[str] = []
    first = {name: (root / f"{name}.csv").read_bytes() for name in ("cells", "summary", "pairs", "transfer")}
    stopped = next((root / "runs" / "fedavg-seed=1").iterdir())
    RunFolder.open(stopped).update(status="running")
    shutil.rmtree(root / "runs" / "centralised-seed=2")
    again = compare(config, GRID, say=lines.append)
    assert again.folder == root
    assert lines[0].startswith("9 runs (3 settings), 7 already done")
    assert [folder.name for folder in (root / "runs" / "fedavg-seed=1").iterdir()] == [stopped.name]
    for name in ("summary", "pairs", "transfer"):
        old, new = (
            pd.read_csv(path) if isinstance(path, Path) else pd.read_csv(io.BytesIO(path))
            for path in (first[name], root / f"{name}.csv")
        )
        columns = [c for c in old.columns if c != "seconds"]  # the only thing that two runs of a cell may not share
        pd.testing.assert_frame_equal(old[columns], new[columns])
