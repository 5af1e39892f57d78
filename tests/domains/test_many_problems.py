"""More problems than are listed: how many there are is told, wherever the refusal comes out."""

from __future__ import annotations

import pickle

import pytest

from fedfm.cli import main
from fedfm.commands.site_check import _data
from fedfm.config.site import SiteSettings
from fedfm.domains import check_path
from fedfm.domains.checks import refuse
from fedfm.errors import DataError, Problem


@pytest.fixture
def many(tmp_path):
    (tmp_path / "train.conll").write_text("a\tX\n" * 150, encoding="utf-8")
    return tmp_path


def test_the_number_of_problems_is_that_of_all_and_not_that_of_the_lines(many, capsys):
    assert main(["data", "check", str(many), "--task", "token-classification"]) == 2
    told = capsys.readouterr().err
    assert "wrong input: 150 problems" in told
    assert told.count("unknown tag") == 10 and "and 140 more" in told


def test_a_site_is_told_how_many_more_there_are(many):
    settings = SiteSettings.model_construct(source=str(many))
    assert "(and 149 more: fedfm data check)" in _data(settings).found
    assert sum(problem.count for problem in check_path(many).problems) == 150


@pytest.mark.parametrize(("number", "lines"), [(1, 1), (10, 10), (11, 11), (12, 11)])
def test_an_error_counts_alike_here_and_in_another_process(number, lines):
    with pytest.raises(DataError) as error:
        refuse([Problem(f"line {i}") for i in range(number)])
    assert len(error.value.problems) == lines
    assert error.value.count == pickle.loads(pickle.dumps(error.value)).count == number
