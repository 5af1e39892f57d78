"""`fedfm list` and `fedfm doctor`: whole tables within 80 columns."""

from __future__ import annotations

import re

import pytest

from fedfm.cli import main
from fedfm.commands.listing import TABLES, TASKS
from fedfm.config.models import Task
from fedfm.doctor import CHECKS, Finding, examine
from fedfm.strategies import STRATEGIES


@pytest.fixture(params=[80, 120])
def columns(request, monkeypatch) -> int:
    monkeypatch.setenv("COLUMNS", str(request.param))
    return request.param


@pytest.mark.parametrize("title", TABLES)
def test_each_row_is_one_line(title, columns, capsys):
    header, rows = TABLES[title]()
    assert main(["list", title]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(rows)
    assert max(map(len, lines)) <= columns
    for line, row in zip(lines, [header, *rows], strict=True):
        assert all(cell in line for cell in row)


def test_every_strategy_cites_its_paper(capsys):
    assert main(["list", "strategies"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^fedavg +McMahan 2017, arXiv:1602.05629 +all sites +none +1x", printed, re.MULTILINE)
    for strategy in STRATEGIES.values():
        assert strategy.summary.paper in printed


def test_the_table_of_tasks_is_whole():
    assert [name for name, *_ in TASKS] == list(Task.__args__)


def test_all_tables_follow_one_another(capsys):
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert [printed.index(word) for word in ("strategy", "body", "task of a domain", "engine")] == sorted(
        printed.index(word) for word in ("strategy", "body", "task of a domain", "engine")
    )


def test_an_unknown_list(capsys):
    assert main(["list", "strategy"]) == 2
    assert 'nothing is listed as "strategy". did you mean "strategies"?' in capsys.readouterr().err


def test_doctor_checks_this_machine(columns, capsys):
    findings = examine()
    assert len(findings) == len(CHECKS)
    assert {finding.state for finding in findings} <= {"ok", "note", "problem"}
    assert all(finding.mend for finding in findings if finding.state != "ok")
    code = main(["doctor"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert code == (0 if lines[-1] == f"{len(CHECKS)} checks, 0 problems" else 2)
    assert lines[0].split() == ["python", "ok", findings[0].found]


def test_doctor_says_how_to_mend_and_ends_with_2(monkeypatch, capsys):
    bad = Finding("disk", "problem", "0.1 GiB free here", "set runs.folder to a larger disk")
    monkeypatch.setattr("fedfm.doctor.CHECKS", (lambda: bad, CHECKS[0]))
    assert main(["doctor"]) == 2
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0].split() == ["disk", "problem", "0.1", "GiB", "free", "here"]
    assert lines[1] == "mend: set runs.folder to a larger disk"
    assert lines[-1] == "2 checks, 1 problem"
