"""Images of one class in validation or test: auc is not defined there, and that is said before the run ends."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from fedfm.cli import main
from fedfm.config import DomainConfig
from fedfm.domains.formats import read_source
from fedfm.federation.common_ground import check_together
from fedfm.federation.messages import SiteCard

sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import tiny, train_federation

TEST = 'a single class, "1", in the test split: auc is not defined there'


def write_images(file: Path, **classes: list[int]) -> Path:
    """`classes`: split -> the classes of its images."""
    draw = np.random.default_rng(0)
    arrays = {}
    for split, labels in classes.items():
        arrays[f"{split}_images"] = draw.integers(0, 256, (len(labels), 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.array(labels, np.uint8)[:, None]
    np.savez(file, **arrays)
    return file


@pytest.fixture
def one_class(tmp_path):
    return write_images(tmp_path / "scans.npz", train=[0, 1] * 8, val=[0, 1] * 2, test=[1] * 4)


def test_a_check_of_the_data_tells(one_class, capsys):
    assert main(["data", "check", str(one_class)]) == 0
    told = capsys.readouterr().out
    assert f"warning: {TEST}" in told
    assert "1 warning" in told


def test_a_run_tells_it_once_though_all_its_sites_hold_a_part(one_class, tmp_path):
    domain = {"task": "image-classification", "source": str(one_class), "sites": 2}
    folder = train_federation(tiny(tmp_path / "runs", scans=domain)).folder
    events = [json.loads(line) for line in (folder.path / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    said = [event["message"] for event in events if event["event"] == "warning"]
    assert [sentence for sentence in said if "auc" in sentence] == [f"scans: {TEST}"]
    assert folder.info["final"]["scans"]["auc"] is None


def test_a_site_s_own_source_is_no_concern_before_it_is_seen_with_the_others(one_class):
    settings = DomainConfig(task="image-classification")
    assert TEST in read_source(one_class, settings, 0).warnings
    assert read_source(one_class, settings, 0, part=True).warnings == ()


def card(site: str, test: dict[str, int]) -> SiteCard:
    counts = {"train": {"0": 4, "1": 4}, "validation": {"0": 1, "1": 1}, "test": test}
    return SiteCard(site, "scans", "image-classification", ("0", "1"), (1, 28, 28), counts, "x", "0" * 64)


def test_sites_with_sources_of_their_own_are_looked_at_together():
    ones, both = {"0": 0, "1": 3}, {"0": 2, "1": 1}
    (said,) = check_together("scans", [card("a", ones), card("b", ones)])
    assert (
        said == 'a single class, "1", in the test data of all sites of domain scans together: auc is not defined there'
    )
    assert check_together("scans", [card("a", ones), card("b", both)]) == []
    assert check_together("scans", [card("a", ones)]) == []  # of one alone its own card warns


def test_classes_of_texts_are_scored_without_auc(tmp_path):
    for split, labels in (("train", ("good", "bad")), ("test", ("good",))):
        rows = [f"{label} {i},{label}" for label in labels for i in range(4)]
        (tmp_path / f"{split}.csv").write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    found = read_source(tmp_path, DomainConfig(task="text-classification"), 0)
    assert not any("auc" in sentence for sentence in found.warnings)
