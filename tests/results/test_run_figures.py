"""Figures of many classes stay small; their numbers are all in the CSV."""

from __future__ import annotations

import numpy as np

from fedfm.results.run_figures import DRAWN_CLASSES, _confusion, _entities, _most_mistaken


def test_of_many_classes_those_with_most_mistakes_are_drawn():
    """By hand: 40 classes; class i is taken for class 0, i times. Class 0 and the 28 highest are drawn, 11 are not."""
    labels = np.repeat(np.arange(40), np.arange(40))
    items = {"labels": labels, "probabilities": np.eye(40)[np.zeros(len(labels), int)]}
    name, figure, data = _confusion("news", items, [f"c{i}" for i in range(40)])
    assert name == "confusion_news"
    assert data.shape == (40, 41)
    assert data["c0"].tolist() == list(range(40))
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["c0", *(f"c{i}" for i in range(12, 40)), "11 others"]
    assert len(axes.texts) == DRAWN_CLASSES**2
    drawn = [int(text.get_text()) for text in axes.texts if text.get_position()[0] == 0]
    assert drawn == [0, *range(12, 40), sum(range(1, 12))]


def test_few_classes_are_drawn_as_they_are():
    table = np.arange(9).reshape(3, 3)
    shown, names = _most_mistaken(table, ["a", "b", "c"])
    assert shown is table
    assert names == ["a", "b", "c"]


def test_no_mistake_is_lost_among_the_others():
    table = np.random.default_rng(0).integers(0, 9, (50, 50))
    shown, names = _most_mistaken(table, [str(i) for i in range(50)])
    assert shown.sum() == table.sum()
    chosen = [int(name) for name in names[:-1]]
    assert np.array_equal(shown[:-1, :-1], table[np.ix_(chosen, chosen)])
    assert np.array_equal(shown[:-1].sum(axis=1), table[chosen].sum(axis=1))


def test_of_many_entity_types_the_most_frequent_are_drawn():
    kinds = [f"t{i:02d}" for i in range(40)]
    spans = np.stack([np.arange(40), np.full(40, 2), np.ones(40)], axis=1)[None]
    _, figure, data = _entities("news", {"spans": spans}, ["O", *(f"B-{kind}" for kind in kinds)])
    assert len(data) == 40
    axes = figure.axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"t{i} ({i})" for i in range(10, 40)]
    assert axes.get_title() == "news: entities (10 more in the CSV)"
