"""Cutting a source into sites: what always holds, and what each rule means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfm.config import DomainConfig
from fedfm.domains.draws import apportion
from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.partition import SHARES, partition, partition_dataset
from fedfm.errors import DataError


def config(rule: str, **keys) -> DomainConfig:
    keys = {name.replace("_", "-"): value for name, value in keys.items()}
    return DomainConfig.model_validate({"task": "text-classification", "partition": rule, **keys})


def texts(*sizes_by_class: tuple[int, ...]) -> Dataset:
    """A dataset with the given class counts in train, validation, test; each text names its split and number."""
    names = ("train", "validation", "test")
    splits = []
    for name, sizes in zip(names, sizes_by_class, strict=True):
        labels = np.repeat(np.arange(len(sizes)), sizes)
        splits.append(Examples("text-classification", tuple(f"{name} {i}" for i in range(len(labels))), labels))
    labels = tuple(f"class {c}" for c in range(max(map(len, sizes_by_class))))
    return Dataset("text-classification", labels, *splits, source="memory", sha256="0")


@pytest.mark.parametrize("rule", SHARES)
@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 3), min_size=24, max_size=80),
    num_sites=st.integers(2, 6),
    minimum=st.integers(1, 4),
    alpha=st.floats(0.01, 10),
    sigma=st.floats(0, 20),
    seed=st.integers(0, 2**32),
)
def test_each_example_at_one_site_and_the_minimum_at_each(rule, labels, num_sites, minimum, alpha, sigma, seed):
    keys = config(rule, minimum_per_site=minimum, alpha=alpha, sigma=sigma)
    parts = partition(labels, num_sites, keys, np.random.default_rng(seed))
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    assert len(parts) == num_sites and min(map(len, parts)) >= minimum
    again = partition(np.array(labels), num_sites, keys, np.random.default_rng(seed))
    assert all(np.array_equal(one, other) for one, other in zip(parts, again, strict=True))


@given(
    weights=st.lists(st.floats(0, 100), min_size=1, max_size=12).filter(lambda w: sum(w) > 1e-6),
    total=st.integers(0, 500),
    seed=st.integers(0, 99),
)
def test_apportion_keeps_within_one_of_the_share(weights, total, seed):
    weights = np.array(weights)
    parts = apportion(weights, total, np.random.default_rng(seed))
    assert parts.sum() == total and parts.min() >= 0
    assert np.abs(parts - weights / weights.sum() * total).max() < 1 + 1e-6


def test_iid_sizes_differ_by_one_at_most():
    parts = partition([0, 1] * 25 + [0], 4, config("iid"), np.random.default_rng(0))
    assert sorted(map(len, parts)) == [12, 13, 13, 13]


def test_dirichlet_follows_alpha():
    """Share of a site's largest class, of 4 equal classes: near 1/4 for a large alpha, near 1 for a small one."""
    labels = np.repeat(np.arange(4), 500)

    def largest_shares(alpha):
        parts = partition(labels, 10, config("dirichlet", alpha=alpha), np.random.default_rng(0))
        return [np.bincount(labels[part]).max() / len(part) for part in parts]

    assert max(largest_shares(1e6)) < 0.26
    assert np.mean(largest_shares(0.05)) > 0.8


def test_dirichlet_shares_have_the_moments_of_the_distribution():
    """P ~ Dir(alpha 1_K): mean 1/K, variance (K - 1) / (K^2 (K alpha + 1)) = 4 / (25 * 3.5) for K = 5, alpha = 0.5."""
    shares = SHARES["dirichlet"](None, 20_000, 5, config("dirichlet", alpha=0.5), np.random.default_rng(0))
    np.testing.assert_allclose(shares.mean(0), 0.2, atol=0.006)
    np.testing.assert_allclose(shares.var(0), 4 / 87.5, rtol=0.03)


@pytest.mark.parametrize(("num_sites", "each", "classes"), [(5, 2, 10), (10, 2, 10), (4, 3, 5), (3, 9, 4)])
def test_pathological_gives_each_site_its_number_of_classes(num_sites, each, classes):
    labels = np.repeat(np.arange(classes), 60)
    parts = partition(labels, num_sites, config("pathological", classes_per_site=each), np.random.default_rng(1))
    held = [set(labels[part].tolist()) for part in parts]
    assert all(len(found) == min(each, classes) for found in held)
    holders = [sum(c in found for found in held) for c in range(classes)]
    assert max(holders) - min(holders) <= 1


def test_pathological_with_too_few_places():
    with pytest.raises(DataError) as error:
        partition(np.arange(8).repeat(5), 3, config("pathological"), np.random.default_rng(0))
    assert "3 sites with 2 classes each cannot hold all 8 classes" in str(error.value)
    assert "set classes-per-site = 3 or more" in str(error.value)


def test_quantity_is_log_normal():
    keys = config("quantity", sigma=0.7)
    logs = np.log(np.stack([SHARES["quantity"](None, 1, 8, keys, np.random.default_rng(s))[0] for s in range(3000)]))
    np.testing.assert_allclose(logs.std(1, ddof=1).mean(), 0.7 * 0.965, rtol=0.02)  # c4(8) = 0.965: bias of a deviation
    even = partition([0] * 80, 8, config("quantity", sigma=0.0), np.random.default_rng(0))
    assert {len(part) for part in even} == {10}


def test_all_splits_follow_the_same_shares():
    """Validation and test are 1/5 and 2/5 of train in each class, so each site holds the same parts of its train."""
    data = texts((500, 500, 500), (100, 100, 100), (200, 200, 200))
    for rule in ("dirichlet", "pathological", "quantity"):
        sites = partition_dataset(data, 4, config(rule, alpha=0.3), np.random.default_rng(3))
        assert all(site.labels == data.labels for site in sites)
        for site in sites:
            counts = [np.bincount(split.labels, minlength=3) for split in site.splits().values()]
            # rounding, and for `quantity` the lot that a class-blind draw is
            slack = 25 if rule == "quantity" else 2
            assert (
                np.abs(counts[0] / 5 - counts[1]).max() <= slack and np.abs(counts[0] / 2.5 - counts[2]).max() <= slack
            )
        for name in ("train", "validation", "test"):
            inputs = [text for site in sites for text in site.splits()[name].inputs]
            assert sorted(inputs) == sorted(data.splits()[name].inputs)


def test_no_empty_validation_where_it_can_be_avoided():
    keys = config("dirichlet", alpha=0.05)
    for site in partition_dataset(texts((200, 200), (4, 4), (2, 1)), 6, keys, np.random.default_rng(0)):
        assert len(site.validation) and len(site.train) >= 2
        expected = () if len(site.test) else ("no test example falls to this site",)
        assert site.warnings == expected


def test_too_few_examples():
    with pytest.raises(DataError) as error:
        partition_dataset(texts((5, 4), (1, 1), (1, 1)), 5, config("iid"), np.random.default_rng(0))
    assert str(error.value).startswith("memory: 9 training examples cannot give 5 sites 2 each")
    assert "lower sites or minimum-per-site" in str(error.value)


def test_the_class_of_a_sentence_is_its_most_frequent_type():
    """Tags O, B-a, I-a, B-b, I-b: the sentences' classes are b, a, O, a (I- tags do not count, the lower type wins)."""
    sentences = [np.array(tags) for tags in ([3, 3, 1, 0], [1, 2, 2, 0], [0, 0], [3, 4, 1])] * 30
    keys = config("pathological", classes_per_site=1)
    parts = partition(sentences, 3, keys, np.random.default_rng(0))
    assert sorted(sorted({index % 4 for index in part.tolist()}) for part in parts) == [[0], [1, 3], [2]]
