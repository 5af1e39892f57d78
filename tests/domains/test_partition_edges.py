"""Cuts of a source at their edges, by hand: each of these lines could be broken without another test noticing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from fedfm.config import DomainConfig
from fedfm.domains.draws import cut_missing, limit
from fedfm.domains.examples import Examples
from fedfm.domains.partition import _fill, _quantity, partition


def texts(labels: np.ndarray) -> Examples:
    return Examples("text-classification", [str(number) for number in range(len(labels))], labels)


@pytest.mark.parametrize("seed", range(5))
def test_a_site_is_filled_up_from_a_site_that_can_spare_with_a_class_that_is_its_own(seed):
    """Site 2 has nothing and class 1 is its; site 1, with four of that class, gives one."""
    classes = np.array([0] * 6 + [1] * 4)
    shares = np.array([[1.0, 0, 0], [0, 0.5, 0.5]])
    found = _fill(classes.copy(), classes, shares, 1, np.random.default_rng(seed))
    assert classes[found == 2].tolist() == [1]


def test_a_site_at_the_minimum_gives_nothing():
    """Site 1 has one example, all that it needs: what site 2 gets comes from site 0, of another class."""
    classes = np.array([0] * 6 + [1])
    found = _fill(classes.copy(), classes, np.array([[1.0, 0, 0], [0, 0.5, 0.5]]), 1, np.random.default_rng(0))
    assert np.bincount(found).tolist() == [5, 1, 1]
    assert found[6] == 1


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_site_gives(seed):
    owners = np.array([0] * 6 + [1] * 3)
    found = _fill(owners, np.zeros(9, int), np.array([[0.6, 0.3, 0.1]]), 1, np.random.default_rng(seed))
    assert np.bincount(found).tolist() == [5, 3, 1]


def test_classes_of_a_pathological_cut_need_not_count_from_zero():
    settings = DomainConfig.model_validate(
        {"task": "text-classification", "partition": "pathological", "classes-per-site": 1, "minimum-per-site": 1}
    )
    labels = np.repeat([1, 2, 3], 8)
    parts = partition(labels, 3, settings, np.random.default_rng(0))
    assert [len(set(labels[part])) for part in parts] == [1, 1, 1]


def test_sizes_of_any_spread_are_finite():
    settings = SimpleNamespace(sigma=1000.0)
    assert np.isfinite(_quantity(None, 1, 5, settings, np.random.default_rng(0))).all()


def test_fewer_examples_than_labels_may_be_kept():
    assert len(limit(texts(np.arange(20) % 5), 3, np.random.default_rng(0))) == 3


def test_no_split_is_drawn_from_examples_that_the_labels_need():
    found = cut_missing(texts(np.arange(4)), ("validation", "test"), np.random.default_rng(0))
    assert len(found["train"]) == 4
    assert not len(found["test"])
