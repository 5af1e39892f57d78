"""`fedfm contributions` on a tiny federation."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from fedfm.cli import main
from fedfm.commands.contributions import contributions
from fedfm.errors import ConfigError, UserError
from fedfm.results.run_folder import RunFolder

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import TEXTS, tiny, train_federation

pytestmark = pytest.mark.usefixtures("small_data")


def source(folder: Path, sites: int = 2) -> dict:
    return {
        "rounds": 1,
        "runs": {"folder": str(folder)},
        "body": {"layers": 1},
        "local": {"batch-size": 4, "max-length": 16},
        "domains": {"finance": {**TEXTS, "sites": sites}},
    }


def test_shapley_values_sum_to_what_training_brought_and_nothing_is_run_twice(tmp_path):
    root, table = contributions(source(tmp_path), shapley=True)
    values = pd.read_csv(root / "coalitions.csv", keep_default_na=False).set_index("sites")["value"]
    assert set(values.index) == {"", "finance-1", "finance-2", "finance-1 finance-2"}
    assert table["shapley"].sum() == pytest.approx(values["finance-1 finance-2"] - values[""])
    whole = RunFolder.open(next((root / "runs" / "all").iterdir()))
    rows = whole.metrics.query("scope == 'federation' and split == 'validation' and metric == 'mean'").set_index(
        "round"
    )
    assert values["finance-1 finance-2"] == pytest.approx(rows.loc[1, "value"])
    assert values[""] == pytest.approx(rows.loc[0, "value"])
    lines = []
    again_root, again = contributions(source(tmp_path), shapley=True, say=lines.append)
    assert (again_root, lines[0]) == (root, "3 runs, 3 already done, 1 at once")
    pd.testing.assert_frame_equal(again, table)


def test_a_site_that_is_left_out_is_scored_and_does_not_train(tmp_path):
    config = tiny(tmp_path, 'sampling.without=["finance-2"]', finance={**TEXTS, "sites": 2})
    metrics = train_federation(config).folder.metrics
    assert set(metrics.query("split == 'train'")["name"]) == {"finance-1"}
    assert set(metrics.query("split == 'test' and scope == 'site'")["name"]) == {"finance-1", "finance-2"}


def test_too_many_sites_and_wrong_names_are_refused(tmp_path, capsys):
    with pytest.raises(UserError, match="exact Shapley values of 7 sites need 127 runs; the most is 6 sites"):
        contributions(source(tmp_path, 7), shapley=True)
    with pytest.raises(UserError, match='unknown metric "finanse"'):
        contributions(source(tmp_path), metric="finanse")
    with pytest.raises(UserError, match="one site alone"):
        contributions(source(tmp_path, 1))
    with pytest.raises(ConfigError, match='no site "finance-9"'):
        contributions(source(tmp_path), 'sampling.without=["finance-9"]')
    with pytest.raises(ConfigError, match="a round needs 1 usable updates, but only 0 sites train"):
        contributions(source(tmp_path), 'sampling.without=["finance-1", "finance-2"]')
    assert main(["contributions", str(tmp_path / "none.toml")]) == 2
    assert "error[FM101]" in capsys.readouterr().err
