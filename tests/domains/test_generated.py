"""Generated data: reproducible, cut as configured, different from site to site, and learnable but not by counting."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, defaultdict

import numpy as np
import pytest
from seqeval.metrics import f1_score as entity_f1
from seqeval.scheme import IOB2
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedfm.config import load_config
from fedfm.domains.examples import Dataset
from fedfm.domains.generated import EXAMPLES_PER_SITE, GENERATORS, entities, generate_site, images, sentences
from fedfm.errors import DataError

DOMAINS = {"medical": "image-classification", "finance": "text-classification", "ner": "token-classification"}


def sites(domain: str, *overrides: str) -> list[Dataset]:
    config = load_config({"domains": {domain: {"task": DOMAINS[domain]}}}, overrides)
    return [generate_site(config, domain, site) for site in config.domains[domain].site_names(domain)]


@pytest.mark.parametrize("domain", DOMAINS)
def test_shapes_sizes_and_labels(domain):
    for dataset in sites(domain):
        assert dataset.task == DOMAINS[domain]
        assert dataset.source == "generated"
        assert {split: len(examples) for split, examples in dataset.splits().items()} == EXAMPLES_PER_SITE
        assert dataset.labels == GENERATORS[dataset.task].LABELS
        for examples in dataset.splits().values():
            assert len(examples.inputs) == len(examples.labels)
            flat = np.concatenate([np.atleast_1d(labels) for labels in examples.labels])
            assert flat.dtype == np.int64
            assert set(flat.tolist()) == set(range(len(dataset.labels)))


def test_images_are_bytes():
    inputs = sites("medical")[0].train.inputs
    assert inputs.dtype == np.uint8
    assert inputs.shape[1:] == (32, 32, 3)


def test_sentences_are_filled_and_end_in_a_stop():
    texts = [text for dataset in sites("finance") for text in dataset.train.inputs]
    assert not [text for text in texts if set("{}") & set(text) or "  " in text or not text.endswith(".")]


def test_words_and_tags_are_in_step_and_iob2():
    for dataset in sites("ner"):
        for words, tags in zip(dataset.train.inputs, dataset.train.labels, strict=True):
            assert len(words) == len(tags)
            assert not [word for word in words if set("{} ") & set(word)]
            for before, tag in zip([0, *tags[:-1]], tags, strict=True):
                continues = tag > 0 and tag % 2 == 0  # I- of a type follows its own B- (one below) or itself
                assert not continues or before in (tag - 1, tag)


@pytest.mark.parametrize("domain", DOMAINS)
def test_another_process_generates_the_same(domain):
    code = (
        "from fedfm.config import load_config; from fedfm.domains.generated import generate_site\n"
        f"config = load_config({{'domains': {{'{domain}': {{'task': '{DOMAINS[domain]}'}}}}}})\n"
        f"print(generate_site(config, '{domain}', '{domain}-2').sha256)"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == sites(domain)[1].sha256


@pytest.mark.parametrize("domain", DOMAINS)
def test_seed_and_site_change_the_data_and_nothing_else_does(domain):
    first, second = sites(domain)
    assert first.sha256 != second.sha256
    assert sites(domain, "seed=1")[0].sha256 != first.sha256
    assert sites(domain, f"domains.{domain}.weight=2.0", "rounds=9")[0].sha256 == first.sha256


@pytest.mark.parametrize("domain", DOMAINS)
def test_no_example_is_at_two_sites_or_in_two_splits(domain):
    """Images never repeat; a few short sentences may, by chance, but no more than one in twenty."""
    splits = [examples for dataset in sites(domain) for examples in dataset.splits().values()]
    seen = Counter(item.tobytes() if domain == "medical" else item for split in splits for item in set_of(split))
    repeated = sum(count - 1 for count in seen.values()) / sum(seen.values())
    assert repeated <= (0 if domain == "medical" else 0.05)


def set_of(examples):
    return examples.inputs if isinstance(examples.inputs, np.ndarray) else set(examples.inputs)


def test_max_examples_caps_the_training_pool_of_the_domain():
    parts = sites("finance", "domains.finance.max-examples=50")
    assert sum(len(part.train) for part in parts) == 50
    assert [len(part.test) for part in parts] == [80, 80]


def test_partition_is_the_domains_own():
    overrides = ("domains.medical.partition=pathological", "domains.medical.classes-per-site=2")
    for dataset in sites("medical", *overrides):
        assert len(np.unique(dataset.train.labels)) == 2
        assert set(dataset.test.labels) == set(dataset.train.labels)


def test_label_skew_reaches_the_entities():
    """Sentences about one type hold more names of it than of any other."""
    by_subject = {}
    for number, kind in enumerate(entities.TYPES):
        rng = np.random.default_rng(number)
        tags = np.concatenate(entities.render(np.full(200, number), entities.draw_style(rng), rng).labels)
        starts = np.bincount(tags, minlength=7)[1::2]
        by_subject[kind] = starts / starts.sum()
    for number, kind in enumerate(entities.TYPES):
        assert by_subject[kind].argmax() == number


def test_too_few_examples_for_the_sites():
    with pytest.raises(DataError, match="generated: 3 training examples cannot give 2 sites 2 each"):
        sites("ner", "domains.ner.max-examples=3")


def test_a_split_may_be_empty():
    none = np.zeros(0, np.int64)
    for generator in (images, sentences, entities):
        rng = np.random.default_rng(0)
        assert len(generator.render(none, generator.draw_style(rng), rng)) == 0


# How hard it is. Measured with seeds 0 to 4, two sites, Faker 40: pixels .77-.86, filters .985-.996; word counts
# .75-.83; most frequent tag .42-.45. Margins are wide: other versions of Faker write other names.


def pooled(domain: str, split: str) -> tuple[list, list]:
    examples = [dataset.splits()[split] for dataset in sites(domain)]
    return [x for part in examples for x in part.inputs], [y for part in examples for y in part.labels]


def test_images_need_more_than_pixels():
    (train, labels), (test, truth) = pooled("medical", "train"), pooled("medical", "test")
    pixels = [np.reshape(part, (len(part), -1)) / 255 for part in (train, test)]
    filtered = [filter_statistics(np.stack(part)) for part in (train, test)]
    assert 0.6 < auc(pixels, labels, truth, 1e-3) < 0.88
    assert auc(filtered, labels, truth, 1e-2) > 0.92


def auc(features: list[np.ndarray], labels, truth, strength: float) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=500)).fit(features[0], labels)
    return roc_auc_score(truth, model.predict_proba(features[1]), multi_class="ovr")


def filter_statistics(inputs: np.ndarray) -> np.ndarray:
    """Maximum, mean and deviation of 32 random 5 x 5 filters at three scales: a convolution that was never trained."""
    grey = inputs.mean(3) / 255
    grey = (grey - grey.mean((1, 2), keepdims=True)) / grey.std((1, 2), keepdims=True)
    rng, features = np.random.default_rng(0), []
    for scale in (1, 2, 4):
        coarse = grey.reshape(len(grey), 32 // scale, scale, 32 // scale, scale).mean((2, 4))
        patches = np.lib.stride_tricks.sliding_window_view(coarse, (5, 5), (1, 2)).reshape(len(grey), -1, 25)
        filters = rng.standard_normal((25, 32)) / 5
        answers = np.maximum(patches @ (filters - filters.mean(0)), 0)
        features += [answers.max(1), answers.mean(1), answers.std(1)]
    return np.concatenate(features, 1)


def test_sentences_need_more_than_words():
    (train, labels), (test, truth) = pooled("finance", "train"), pooled("finance", "test")
    words = TfidfVectorizer(sublinear_tf=True)
    model = LogisticRegression(C=10, max_iter=500).fit(words.fit_transform(train), labels)
    assert 0.6 < f1_score(truth, model.predict(words.transform(test)), average="macro") < 0.9
    majority = Counter(labels).most_common(1)[0][0]
    assert f1_score(truth, [majority] * len(truth), average="macro") < 0.25


def test_names_need_more_than_their_words():
    """Each word gets the tag it had most often in training, "O" if it is new."""
    (train, labels), (test, truth) = pooled("ner", "train"), pooled("ner", "test")
    seen: dict[str, Counter] = defaultdict(Counter)
    for words, tags in zip(train, labels, strict=True):
        for word, tag in zip(words, tags, strict=True):
            seen[word.lower()][entities.LABELS[tag]] += 1
    usual = {word: counts.most_common(1)[0][0] for word, counts in seen.items()}
    guessed = [[usual.get(word.lower(), "O") for word in words] for words in test]
    gold = [[entities.LABELS[tag] for tag in tags] for tags in truth]
    assert 0.2 < entity_f1(gold, guessed, mode="strict", scheme=IOB2) < 0.55
