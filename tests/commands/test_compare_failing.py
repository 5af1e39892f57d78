"""A comparison that fails in part, or is asked for wrongly."""

from __future__ import annotations

import shutil

import pytest
from compare_helpers import tiny_source

import fedfm
from fedfm.cli import main
from fedfm.commands.compare import compare
from fedfm.engines import cells as cells_module
from fedfm.errors import ConfigError, DataError, RunError

pytestmark = pytest.mark.usefixtures("small_data")


def test_a_cell_that_fails_is_told_and_does_not_stop_the_rest(tmp_path, monkeypatch, capsys):
    true_run = cells_module.run

    def run(config, **settings):
        if config.seed == 1:
            raise RunError("the building lost power")
        return true_run(config, **settings)

    monkeypatch.setattr(cells_module, "run", run)
    lines = []
    found = compare(tiny_source(tmp_path), {"strategy.name": ["fedavg"], "seed": [0, 1, 2]}, say=lines.append)
    assert list(found.failed) == ["fedavg-seed=1"]
    assert found.cells["seed"].unique().tolist() == [0, 2]
    assert "the building lost power" in (found.folder / "report.html").read_text(encoding="utf-8")
    assert any("fedavg-seed=1  failed: the building lost power" in line for line in lines)


def test_unequal_budgets_are_refused_after_the_tables_are_written(tmp_path, monkeypatch):
    from fedfm.training import pool

    whole = pool.Pool.steps
    monkeypatch.setattr(pool.Pool, "steps", lambda self: [max(1, count - 1) for count in whole(self)])
    with pytest.raises(RunError, match="unequal budgets of optimiser steps: seed 0, finance: fedavg 4, centralised 2"):
        compare(tiny_source(tmp_path), {"strategy.name": ["fedavg", "centralised"]})
    (folder,) = tmp_path.glob("compare-*")
    assert (folder / "summary.csv").exists()
    assert "Unequal" in (folder / "report.html").read_text(encoding="utf-8")


def test_runs_before_and_after_the_data_changed_are_not_compared(tmp_path):
    rows = "".join(f"{label},{text} {n}\n" for n in range(8) for label, text in (("up", "rose"), ("down", "fell")))
    file, source = tmp_path / "a.csv", tiny_source(tmp_path)
    source["domains"] = {"finance": {"task": "text-classification", "source": str(file), "sites": 2}}
    file.write_text(f"label,text\n{rows}", encoding="utf-8")
    grid = {"strategy.name": ["fedavg", "local-only"]}
    compare(source, grid)
    (gone,) = tmp_path.glob("compare-*/runs/local-only*")
    shutil.rmtree(gone)
    file.write_text(f"label,text\n{rows.replace('fell', 'sank')}", encoding="utf-8")
    with pytest.raises(DataError, match="its data changed between two runs that are to be compared"):
        compare(source, grid)


def test_a_key_of_one_strategy_holds_for_those_that_have_it(tmp_path):
    grid = {"strategy.name": ["fedavg", "fedprox"], "strategy.proximal-mu": [0.1, 1.0]}
    _, cells = cells_module.plan(tiny_source(tmp_path), {k: list(map(str, v)) for k, v in grid.items()})
    assert [cell.label for cell in cells] == ["fedavg", "fedprox proximal-mu=0.1", "fedprox proximal-mu=1.0"]
    with pytest.raises(ConfigError, match=r'strategy "fedavg" has no such key. "fedprox" has it'):
        cells_module.plan(tiny_source(tmp_path), {"strategy.name": ["fedavg"], "strategy.proximal-mu": ["0.1"]})


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["strategy.name=fedavg,fedprxo"], 'unknown strategy "fedprxo". did you mean "fedprox"?'),
        (["seed"], '"seed" is not of the form key=a,b,c'),
        (["seed=0,,1"], "has 1 empty value"),
        (["seed=0,0"], "names a value twice"),
        (["seed=0", "seed=1"], "seed is given twice"),
        (["rounds=0,1"], "rounds"),
        (["--jobs", "2", "engine.name=ray"], "have processes of their own"),
    ],
)
def test_wrong_grids_are_refused_before_anything_runs(words, sentence, tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(f'rounds = 1\n[runs]\nfolder = "{tmp_path}/runs"\n', encoding="utf-8")
    assert main(["compare", str(file), *words]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_as_many_jobs_as_there_is_room_for(tmp_path):
    _, cells = cells_module.plan(tiny_source(tmp_path), {"seed": ["0", "1", "2"]})
    assert 1 <= cells_module.usual_jobs(cells) <= 3
    assert cells_module.usual_jobs(cells[:1]) == 1
    _, cells = cells_module.plan(tiny_source(tmp_path), {"seed": ["0", "1"], "engine.name": ["ray"]})
    assert cells_module.usual_jobs(cells) == 1  # its workers are processes already


def test_a_mistake_in_the_file_is_told_with_its_line(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text("rounds = 1\nruonds = 2\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2"):
        cells_module.plan(file, {"seed": ["0"]})


def test_from_python_it_is_public():
    assert fedfm.compare is compare


def test_settings_whose_names_come_to_one_folder_are_told_apart(tmp_path):
    source = tiny_source(tmp_path)
    values = ['["query"]', '["query" ]', '["value"]']
    _, cells = cells_module.plan(source, {"body.lora-targets": values})
    assert len({cell.home for cell in cells}) == len(cells) == 2  # the first two are one configuration
    taken = cells_module.folder_name("a b", others={"a-b"}, key="0123456789")
    assert (taken, cells_module.folder_name("a b", others=(), key="0")) == ("a-b-01234567", "a-b")
