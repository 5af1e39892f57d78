"""Oracles: scikit-learn for classes, seqeval (strict, IOB2) for entities; sums of tallies equal the tally of all."""

from __future__ import annotations

import time
import warnings
from functools import reduce
from operator import add

import numpy as np
import pytest
import seqeval.metrics
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.scheme import IOB2

from fedfm.arrays import num_bytes
from fedfm.training.metrics import (
    PRIMARY,
    Tally,
    classification_report,
    metrics,
    stack,
    tally_classification,
    tally_tags,
    unstack,
)

TAGS = ("O", "B-Disease", "I-Disease", "B-Drug", "I-Drug", "B-Dose")
SEEDS = st.integers(0, 2**32 - 1)
IMAGES, TEXTS, TOKENS = "image-classification", "text-classification", "token-classification"


def names(classes: int) -> list[str]:
    return [f"class {c}" for c in range(classes)]


def draw_classes(seed: int, n: int, classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities on a coarse grid, so that equal scores occur, and labels in which every class occurs."""
    rng = np.random.default_rng([seed, n, classes])
    weights = rng.integers(1, 5, (n, classes)).astype(np.float64)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    return weights / weights.sum(axis=1, keepdims=True), labels


def draw_tags(seed: int, sentences: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Tags without grammar: I- without B-, I- of another type, entities at the last word, empty sentences."""
    rng = np.random.default_rng([seed, sentences])
    true = [rng.choice(len(TAGS), rng.integers(0, 9)) for _ in range(sentences)]
    predicted = [np.where(rng.random(len(t)) < 0.7, t, rng.choice(len(TAGS), len(t))) for t in true]
    return predicted, true


def words(ids: list[np.ndarray]) -> list[list[str]]:
    return [[TAGS[i] for i in sentence] for sentence in ids]


def assert_equal(left: Tally, right: Tally) -> None:
    assert stack([left]).keys() == stack([right]).keys()
    for name, array in stack([left]).items():
        assert array.dtype == stack([right])[name].dtype, name
        np.testing.assert_array_equal(array, stack([right])[name], err_msg=name)


@settings(max_examples=40)
@given(seed=SEEDS, classes=st.integers(2, 5), extra=st.integers(0, 40))
def test_classes_against_scikit_learn(seed: int, classes: int, extra: int) -> None:
    probabilities, labels = draw_classes(seed, classes + extra, classes)
    found = metrics(IMAGES, tally_classification(probabilities, labels, 3.0, True), names(classes))
    predicted = probabilities.argmax(axis=1)
    scores = probabilities.astype(np.float32)
    auc = sklearn.metrics.roc_auc_score(labels, scores[:, 1] if classes == 2 else scores, multi_class="ovr")
    expected = {
        "loss": 3.0 / len(labels),
        "accuracy": sklearn.metrics.accuracy_score(labels, predicted),
        "macro_f1": sklearn.metrics.f1_score(labels, predicted, average="macro", zero_division=0),
        "auc": auc,
        "balanced_accuracy": sklearn.metrics.balanced_accuracy_score(labels, predicted),
    }
    assert found == pytest.approx(expected, abs=1e-12)


def test_golden_auc() -> None:
    """Positives .8, .5; negatives .5, .2: pairs won 1 + 1 + 1, tied 1, of 4 -> (3 + .5) / 4."""
    positive = np.array([0.8, 0.5, 0.5, 0.2])
    tally = tally_classification(np.stack([1 - positive, positive], 1), np.array([1, 1, 0, 0]), 0.0, True)
    assert metrics(IMAGES, tally, names(2))["auc"] == 0.875


@pytest.mark.parametrize(
    ("truth", "guess"), [([0, 0, 2], [0, 2, 2]), ([0, 1], [3, 3]), ([2, 2, 2], [2, 2, 0]), ([1], [1])]
)
def test_absent_classes_follow_scikit_learn(truth: list[int], guess: list[int]) -> None:
    tally = tally_classification(np.eye(4)[guess], np.array(truth), 0.0, True)
    found = metrics(IMAGES, tally, names(4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns where the prediction has classes that truth has not
        balanced = sklearn.metrics.balanced_accuracy_score(truth, guess)
    assert found["balanced_accuracy"] == pytest.approx(balanced, abs=1e-12)
    macro = sklearn.metrics.f1_score(truth, guess, average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(macro, abs=1e-12)


def test_auc_leaves_out_classes_without_positives_and_negatives() -> None:
    """Class 2 never occurs: the mean is over classes 0 and 1, both ranked perfectly; one class alone has no area."""
    scores = np.array([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1]])
    two = tally_classification(scores, np.array([0, 1]), 0.0, True)
    assert metrics(IMAGES, two, names(3))["auc"] == 1.0
    one = tally_classification(scores, np.array([1, 1]), 0.0, True)
    assert np.isnan(metrics(IMAGES, one, names(3))["auc"])


def test_auc_of_scores_that_are_not_finite_is_nan() -> None:
    tally = tally_classification(np.array([[np.nan, np.nan], [0.1, 0.9]]), np.array([0, 1]), np.nan, True)
    found = metrics(IMAGES, tally, names(2))
    assert np.isnan(found["auc"])
    assert np.isnan(found["loss"])


def test_text_metrics_need_no_scores() -> None:
    tally = tally_classification(np.eye(2)[[0, 1, 1]], np.array([0, 1, 0]), 1.5, False)
    assert tally.scores == {}
    found = metrics(TEXTS, tally, names(2))
    assert found == pytest.approx({"loss": 0.5, "accuracy": 2 / 3, "macro_f1": 2 / 3}, abs=1e-12)


@settings(max_examples=60)
@given(seed=SEEDS, sentences=st.integers(1, 12))
def test_tags_against_seqeval(seed: int, sentences: int) -> None:
    predicted, true = draw_tags(seed, sentences)
    found = metrics(TOKENS, tally_tags(predicted, true, TAGS, 0.0), TAGS)
    precision, recall, f1, _ = seqeval.metrics.v1.precision_recall_fscore_support(
        words(true), words(predicted), average="micro", scheme=IOB2, zero_division=0
    )
    assert (found["precision"], found["recall"], found["f1"]) == pytest.approx((precision, recall, f1), abs=1e-12)
    assert found["f1"] == pytest.approx(
        seqeval.metrics.f1_score(words(true), words(predicted), mode="strict", scheme=IOB2, zero_division=0), abs=1e-12
    )
    if sum(map(len, true)):
        accuracy = sklearn.metrics.accuracy_score(np.concatenate(true), np.concatenate(predicted))
        assert found["token_accuracy"] == pytest.approx(accuracy, abs=1e-12)


def test_golden_entities() -> None:
    """True: Disease 0-2, Drug 3-4. Predicted I-Disease without B- is none; Drug is right; Dose is one too many.

    precision 1/2, recall 1/2, f1 1/2; of 5 words, words 1, 2, 3 are right.
    """
    true, predicted = np.array([1, 2, 0, 3, 0]), np.array([2, 2, 0, 3, 5])
    tally = tally_tags([predicted], [true], TAGS, 2.0)
    np.testing.assert_array_equal(tally.counts["spans"], [[1, 0, 0], [0, 1, 0], [1, 1, 1]])  # Disease, Dose, Drug
    expected = {"loss": 2.0, "precision": 0.5, "recall": 0.5, "f1": 0.5, "token_accuracy": 0.6}
    assert metrics(TOKENS, tally, TAGS) == expected


def test_thousand_sentences_in_two_seconds() -> None:
    rng = np.random.default_rng(0)
    sentences = [rng.choice(len(TAGS), 30) for _ in range(1000)]
    start = time.perf_counter()
    tally_tags(sentences, sentences, TAGS, 0.0)
    assert time.perf_counter() - start < 2.0


@settings(max_examples=40)
@given(seed=SEEDS, cuts=st.lists(st.integers(0, 30), max_size=3), with_scores=st.booleans())
def test_tallies_of_any_split_of_classes_add(seed: int, cuts: list[int], with_scores: bool) -> None:
    """Losses are multiples of 1/4, so that their sums are exact whatever the order."""
    probabilities, labels = draw_classes(seed, 30, 3)
    order = np.random.default_rng([seed, 1]).permutation(30)
    losses = np.random.default_rng([seed, 2]).integers(0, 9, 30) / 4
    whole = tally_classification(probabilities, labels, losses.sum(), with_scores)
    parts = np.split(order, sorted(cuts))
    tallies = [tally_classification(probabilities[i], labels[i], losses[i].sum(), with_scores) for i in parts]
    total = reduce(add, tallies)
    assert_equal(total, whole)
    task = IMAGES if with_scores else TEXTS
    assert metrics(task, total, names(3)) == metrics(task, whole, names(3))


@settings(max_examples=40)
@given(seed=SEEDS, cut=st.integers(0, 10))
def test_tallies_of_any_split_of_sentences_add(seed: int, cut: int) -> None:
    predicted, true = draw_tags(seed, 10)
    whole = tally_tags(predicted, true, TAGS, 5.0)
    total = tally_tags(predicted[cut:], true[cut:], TAGS, 3.0) + tally_tags(predicted[:cut], true[:cut], TAGS, 2.0)
    assert_equal(total, whole)
    np.testing.assert_equal(metrics(TOKENS, total, TAGS), metrics(TOKENS, whole, TAGS))


@pytest.mark.parametrize("with_scores", [True, False])
def test_arrays_carry_a_tally(with_scores: bool) -> None:
    tally = tally_classification(*draw_classes(3, 20, 4), 1.25, with_scores)
    assert_equal(unstack(stack([tally]))[0], tally)
    tags = tally_tags(*draw_tags(3, 5), TAGS, 0.5)
    assert_equal(unstack(stack([tags]))[0], tags)
    assert num_bytes(stack([tally])) == 16 + 4 * 4 * 8 + with_scores * (20 * 4 * 4 + 4 * 8)


def test_a_tally_forgets_the_order_of_its_examples() -> None:
    probabilities, labels = draw_classes(5, 25, 3)
    order = np.random.default_rng(6).permutation(25)
    assert_equal(
        tally_classification(probabilities, labels, 1.0, True),
        tally_classification(probabilities[order], labels[order], 1.0, True),
    )


def test_nothing_counted_is_nan() -> None:
    empty = tally_classification(np.empty((0, 3)), np.empty(0, np.int64), 0.0, True)
    assert all(np.isnan(value) for value in metrics(IMAGES, empty, names(3)).values())
    assert all(np.isnan(value) for value in metrics(TOKENS, tally_tags([], [], TAGS, 0.0), TAGS).values())


def test_tallies_over_different_labels_do_not_add() -> None:
    two, three = (tally_classification(*draw_classes(0, 5, c), 0.0, False) for c in (2, 3))
    with pytest.raises(ValueError, match=r"tallies over different labels do not add.*confusion.*\(2, 2\).*\(3, 3\)"):
        two + three
    with pytest.raises(ValueError, match="a tally over 3 classes, but 2 labels"):
        metrics(TEXTS, three, names(2))


@pytest.mark.parametrize("classes", [2, 4])
def test_report_of_classes_reads_as_scikit_learns(classes: int) -> None:
    probabilities, labels = draw_classes(7, 40, classes)
    predicted = probabilities.argmax(axis=1)
    report = classification_report(TEXTS, tally_classification(probabilities, labels, 0.0, False), names(classes))
    assert report == sklearn.metrics.classification_report(
        labels, predicted, target_names=names(classes), zero_division=0
    )


def test_report_shows_the_classes_that_occur() -> None:
    labels = ["a name longer than any average", "never", "third"]
    tally = tally_classification(np.eye(3)[[0, 2, 2]], np.array([0, 0, 2]), 0.0, False)
    expected = sklearn.metrics.classification_report([0, 0, 2], [0, 2, 2], target_names=[labels[0], labels[2]])
    assert classification_report(TEXTS, tally, labels) == expected


def test_report_of_entities_reads_as_seqevals() -> None:
    predicted, true = draw_tags(11, 30)
    report = classification_report(TOKENS, tally_tags(predicted, true, TAGS, 0.0), TAGS)
    assert report == seqeval.metrics.classification_report(
        words(true), words(predicted), mode="strict", scheme=IOB2, zero_division=0
    )


def test_report_without_examples_has_averages_only() -> None:
    report = classification_report(TOKENS, tally_tags([], [], TAGS, 0.0), TAGS)
    assert [line.split()[0] for line in report.splitlines() if line] == ["precision", "micro", "macro", "weighted"]


def test_every_task_reports_its_primary_metric() -> None:
    classes = tally_classification(*draw_classes(0, 9, 3), 0.0, True)
    assert PRIMARY[IMAGES] in metrics(IMAGES, classes, names(3))
    assert PRIMARY[TEXTS] in metrics(TEXTS, classes, names(3))
    assert PRIMARY[TOKENS] in metrics(TOKENS, tally_tags(*draw_tags(0, 2), TAGS, 0.0), TAGS)
