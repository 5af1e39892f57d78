"""Figures: which files, with which numbers, the same bytes twice, and what little data draws."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from fake_run import LABELS, PRIMARY, ROUNDS, config, label_counts, round_row, write_run
from PIL import Image
from scipy.optimize import isotonic_regression

from fedfm.results.figures import _label_table, draw_figures, spread
from fedfm.results.run_folder import RunFolder

NAMES = ["metric_medical", "metric_finance", "metric_ner", "overview", "labels", "traffic"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[RunFolder, list]:
    folder = write_run(tmp_path_factory.mktemp("runs"))
    return folder, draw_figures(folder)


def read(path) -> pd.DataFrame:
    return pd.read_csv(path, keep_default_na=False)


def test_figures_exist_and_show_the_numbers_of_the_run(drawn):
    folder, paths = drawn
    figures = folder.path / "figures"
    assert paths == [figures / f"{name}.{kind}" for name in NAMES for kind in ("png", "svg", "csv")]
    assert all(path.stat().st_size > 100 for path in paths)
    with Image.open(figures / "overview.png") as image:
        assert image.width > 800
        assert len(image.convert("RGB").getcolors(1 << 24)) > 50

    metrics = folder.metrics
    for domain, metric in PRIMARY.items():
        shown = read(figures / f"metric_{domain}.csv")
        expected = metrics[(metrics["domain"] == domain) & (metrics["metric"] == metric)]
        for column in shown.columns:
            assert shown[column].tolist() == expected[column].tolist()
        assert set(shown["split"]) == {"validation", "test"}
    overview = read(figures / "overview.csv")
    assert len(overview) == ROUNDS * (len(PRIMARY) + 2)
    for row in overview.itertuples():
        same = (metrics["round"] == row.round) & (metrics["name"] == row.name) & (metrics["metric"] == row.metric)
        found = metrics[same & (metrics["split"] == "validation")]
        assert found["value"].tolist() == [row.value]


def test_label_counts_and_traffic_are_those_of_the_run(drawn):
    folder, _ = drawn
    labels = read(folder.path / "figures" / "labels.csv")
    for index, (site, domain) in enumerate(config().sites().items()):
        counts = labels[labels["site"] == site].set_index("label")["count"].to_dict()
        assert counts == label_counts(domain, index)
    traffic = read(folder.path / "figures" / "traffic.csv")
    assert traffic["bytes_down_so_far"].tolist() == [310_000 * 7 * round for round in range(1, ROUNDS + 1)]
    assert traffic["bytes_up_so_far"].tolist() == [290_000 * 7 * round for round in range(1, ROUNDS + 1)]


def test_the_same_run_draws_the_same_bytes(folder):
    folder.update(primary={"medical": "auc"}, sites={})
    first = {path.name: path.read_bytes() for path in draw_figures(folder)}
    assert first == {path.name: path.read_bytes() for path in draw_figures(folder)}
    assert b"<dc:date>" not in first["overview.svg"]


def test_a_run_that_failed_at_once_draws_nothing(tmp_path):
    folder = RunFolder.create(config(), tmp_path)
    assert draw_figures(folder) == []
    folder.update(status="failed", primary=PRIMARY)
    assert draw_figures(folder) == []


def test_one_round_with_nan_and_a_dollar_label_is_drawn(tmp_path):
    folder = RunFolder.create(config(), tmp_path)
    folder.add_round(round_row(1) | {"bytes_down": 0, "bytes_up": 0})
    row = {"round": 1, "domain": "ner", "split": "validation", "metric": "f1", "num_examples": 0}
    folder.add_metrics(
        [
            row | {"scope": "site", "name": "ner-1", "value": 0.5},
            row | {"scope": "domain", "name": "ner", "value": math.nan},
        ]
    )
    folder.update(primary={"ner": "f1"}, sites={"ner-1": {"domain": "ner", "label_counts": {"train": {"$5 to $6": 3}}}})
    names = {path.stem for path in draw_figures(folder)}
    assert names == {"metric_ner", "overview", "labels", "traffic"}


def test_many_labels_become_the_eight_most_frequent_and_the_rest():
    counts = {label: 100 - number for number, label in enumerate(LABELS["finance"])}
    part = pd.DataFrame(
        [{"site": site, "label": label, "count": count} for site in ("b", "a") for label, count in counts.items()]
    )
    table = _label_table(part)
    assert list(table.columns) == [*LABELS["finance"][:8], "other (69 labels)"]
    assert list(table.index) == ["b", "a"]
    assert table.sum(axis=1).tolist() == [sum(counts.values())] * 2


def test_entities_are_shown_without_the_count_of_sentences_and_sites_without_entities_stay():
    part = pd.DataFrame(
        [("x", "sentences", 900), ("x", "Gene", 4), ("x", "Drug", 2), ("y", "sentences", 70)],
        columns=["site", "label", "count"],
    )
    table = _label_table(part)
    assert table.to_dict("index") == {"x": {"Gene": 4, "Drug": 2}, "y": {"Gene": 0, "Drug": 0}}


def test_spread_moves_labels_apart_by_least_squares():
    """Two labels at 1 with gap 1: the closest places are 0.5 and 1.5. One at 5 stays."""
    assert spread([1.0, 5.0, 1.0], 1.0) == [0.5, 5.0, 1.5]
    assert spread([], 1.0) == []


@pytest.mark.parametrize("seed", range(5))
def test_spread_agrees_with_scipys_isotonic_regression(seed):
    heights, gap = np.random.default_rng([seed]).uniform(0, 1, 9), 0.08
    order = np.argsort(heights)
    expected = isotonic_regression(heights[order] - gap * np.arange(9)).x + gap * np.arange(9)
    np.testing.assert_allclose(np.array(spread(heights.tolist(), gap))[order], expected, rtol=0, atol=1e-12)


def test_labels_of_any_script_are_drawn_without_a_word_on_the_screen(tmp_path):
    """Where no font of the machine has a letter there is a box, and the table beside the figure has the name."""
    folder = write_run(tmp_path)
    sites = folder.info["sites"]
    for site in sites.values():
        site["label_counts"]["train"] = {"積極": 3, "नकारात्मक": 2, "كلب": 4}
    folder.update(sites=sites)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw_figures(folder)
    assert set(read(folder.path / "figures" / "labels.csv")["label"]) == {"積極", "नकारात्मक", "كلب"}
