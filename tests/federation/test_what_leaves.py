"""docs/site.md lists all that leaves a site: by the names that its messages really have."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from federation_helpers import tiny, train_federation
from recorded_sites import SITES, run_recorded
from site_helpers import real_sites

from fedfm.federation.client_app import app
from fedfm.federation.messages import SiteCard

DOCS = (Path(__file__).parents[2] / "docs" / "site.md").read_text(encoding="utf-8")
LIST = DOCS.partition("\n## What leaves\n")[2].partition("\n## ")[0]


def test_every_part_of_a_card_is_in_the_list():
    for name in {field.name for field in fields(SiteCard)} - {"site"}:
        assert f"`{name}`" in LIST, name


@pytest.mark.parametrize(
    "overrides",
    [(), ("strategy.name=ifca",), ("strategy.name=q-fedavg",), ("update.compress=top-k",)],
    ids=lambda words: words[-1] if words else "fedavg",
)
def test_every_number_and_every_tally_of_an_answer_is_in_the_list(tmp_path, overrides):
    grid, _ = run_recorded(tmp_path, app, *overrides)
    for node in SITES:
        for entry in grid.chain(node).entries.values():
            for name in entry.fields.get("numbers", ()) if entry.kind.endswith("-out") else ():
                assert f"`{name.rpartition(':')[2]}`" in LIST, name
            for name, *_ in entry.fields.get("tensors", ()) if entry.kind == "tally-out" else ():
                known = name.rpartition("/")[2].rpartition(":")[2]
                assert f"`{known}`" in LIST or "class-" in known, name


def test_a_real_site_keeps_no_outcome_of_an_example(tmp_path):
    """As a simulation does in its run folder, whatever engine the configuration names."""
    sites = {f"{domain}-{number}": domain for domain in ("medical", "finance", "ner") for number in (1, 2)}
    done = train_federation(tiny(tmp_path / "runs"), real_sites(tmp_path, sites))
    assert done.folder.info["status"] == "finished"
    assert not [file for file in tmp_path.glob("*-?/**/*") if "prediction" in str(file) or "items" in file.name]
