"""A trained model comes from a run folder that is whole; what is not says so in a sentence."""

from __future__ import annotations

import shutil

import pytest

from fedfm.errors import UserError
from fedfm.training.trained import load_model


def test_a_model_without_the_run_json_of_its_run_is_no_run_folder(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "run.json").unlink()
    with pytest.raises(UserError) as caught:
        load_model(run, "finance")
    assert str(caught.value) == f"{run}: not a run folder\n    mend: give the folder that `fedfm run` printed last"


def test_a_damaged_run_json_is_named(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "run.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_model(run, "finance")
    assert str(caught.value).startswith(f"{run / 'run.json'}: damaged: ")
    assert caught.value.problems[0].mend == "restore the file from a copy"
