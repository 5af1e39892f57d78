"""Examples to tensors: which token carries a word's tag, what is cut, what is padded."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_helpers import make_config
from transformers import AutoTokenizer

from fedfm.domains.examples import Examples
from fedfm.models.body import TINY_TOKENIZER, load_body
from fedfm.models.features import IGNORED, collate, featurize
from fedfm.training.evaluation import evaluate, word_tags

TAGS = ("O", "B-ORG", "I-ORG")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_TOKENIZER)


def sentences(*rows: tuple[str, list[int]]) -> Examples:
    words = tuple(tuple(text.split()) for text, _ in rows)
    return Examples("token-classification", words, tuple(np.array(tags, np.int64) for _, tags in rows))


def test_the_first_sub_token_of_a_word_is_labelled_and_no_other(tokenizer):
    """xylophonists is cut into several pieces, bank is one: [CLS] x ##y ... bank [SEP]."""
    features = featurize(sentences(("xylophonists bank", [1, 2])), tokenizer, 32)
    pieces = len(tokenizer.tokenize("xylophonists"))
    assert pieces > 1
    assert len(tokenizer.tokenize("bank")) == 1
    (labels,), (starts,), (ids,) = features.labels, features.word_starts, features.inputs
    assert labels.tolist() == [IGNORED, 1, *[IGNORED] * (pieces - 1), 2, IGNORED]
    assert starts.tolist() == [1, 1 + pieces]
    assert ids[0] == tokenizer.cls_token_id
    assert ids[-1] == tokenizer.sep_token_id
    assert features.truncated == 0


def test_words_that_are_cut_off_are_counted_as_outside(tokenizer):
    """Eight tokens hold [CLS], six words, [SEP]; words 7 and 8 have no token, and every metric counts them as O."""
    features = featurize(sentences(("bank " * 8, [1, 2, 0, 1, 2, 0, 1, 2]), ("bank", [1])), tokenizer, 8)
    assert features.word_starts[0].tolist() == [1, 2, 3, 4, 5, 6, -1, -1]
    assert features.word_labels[0].tolist() == [1, 2, 0, 1, 2, 0, 1, 2]  # the truth is not cut
    assert features.truncated == 0.5
    logits = np.zeros((8, 3))
    logits[:, 1] = 1.0  # everything is B-ORG, says the model
    assert word_tags(logits, features.word_starts[0], TAGS).tolist() == [1, 1, 1, 1, 1, 1, 0, 0]


def test_a_sentence_at_the_limit_is_not_truncated(tokenizer):
    texts = ("bank " * 6, "bank " * 7, "bank")
    features = featurize(Examples("text-classification", texts, np.array([0, 1, 1])), tokenizer, 8)
    assert features.lengths().tolist() == [8, 8, 3]
    assert features.truncated == pytest.approx(1 / 3)


def test_an_empty_split_and_an_empty_text(tokenizer):
    empty = featurize(Examples("text-classification", (), np.zeros(0, np.int64)), tokenizer, 8)
    assert (len(empty), empty.truncated, empty.lengths().tolist()) == (0, 0.0, [])
    blank = featurize(Examples("text-classification", ("", "bank"), np.array([0, 1])), tokenizer, 8)
    assert blank.lengths().tolist() == [2, 3]


def test_a_batch_is_padded_to_its_longest_and_no_further(tokenizer):
    texts = tuple("bank " * n for n in (1, 9, 2))
    features = featurize(Examples("text-classification", texts, np.array([0, 1, 2])), tokenizer, 32)
    short = collate([(features, np.array([0, 2]))], "cpu", torch.float32)
    assert short.inputs["input_ids"].shape == (2, 4)
    assert short.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert short.inputs["input_ids"][0, 3] == tokenizer.pad_token_id
    assert short.labels.tolist() == [0, 2]
    assert short.weights is None  # each the same
    assert collate([(features, np.array([1]))], "cpu", torch.float32).inputs["input_ids"].shape == (1, 11)


def test_every_scored_token_of_a_site_counts_the_same_and_padding_nothing(tokenizer):
    """Sentences of 3 and 1 words: four labels, a quarter each; rows of a smaller site are filled up with nothing."""
    features = featurize(sentences(("bank bank bank", [0, 1, 2]), ("bank", [0])), tokenizer, 32)
    both, one = np.array([0, 1]), np.array([1])
    batch = collate([(features, both), (features, one)], "cpu", torch.float64)
    assert batch.labels.shape == batch.weights.shape == (4, 5)
    scored = (batch.labels != IGNORED).double()
    assert torch.equal(batch.weights[:2], scored[:2] / 4)
    assert batch.weights[2].sum() == 1
    assert batch.weights[3].sum() == 0


def test_scores_do_not_depend_on_what_shares_a_batch():
    """70 texts of mixed length in batches of 64, sorted: the tally equals that of the texts one by one."""
    from model_helpers import TEXT, make_bound

    config = make_config("engine.dtype=float64")
    matrix = make_bound(config, TEXT)
    draw = np.random.default_rng(0)
    texts = tuple(" ".join(draw.choice(["bank", "fell", "profit", "weak"], draw.integers(1, 20))) for _ in range(70))
    examples = Examples("text-classification", texts, draw.integers(0, 3, 70))
    whole = featurize(examples, load_body(config).tokenizer, 64)
    together = evaluate(matrix.model, [whole])[0].tally
    splits = [featurize(examples.take([i]), load_body(config).tokenizer, 64) for i in range(70)]
    alone = [evaluate(matrix.model, [split])[0].tally for split in splits]
    total = sum(alone[1:], alone[0])
    assert np.array_equal(together.counts["confusion"], total.counts["confusion"])
    assert together.num_examples == total.num_examples == 70
    assert together.loss_sum == pytest.approx(total.loss_sum, abs=1e-9)


def test_images_are_laid_out_channels_first_and_scaled_to_one():
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    features = featurize(Examples("image-classification", pixels, np.array([1, 0])), None, 8)
    batch = collate([(features, np.array([1, 0]))], "cpu", torch.float64)
    assert batch.inputs["images"].shape == (2, 3, 4, 5)
    assert batch.inputs["images"][0, 2, 3, 4] == pixels[1, 3, 4, 2] / 255
    assert batch.labels.tolist() == [0, 1]


def test_a_split_without_texts_has_every_part_that_scoring_reads():
    """One site without test sentences must not cost the sites that are scored beside it their scores."""
    tokenizer = load_body(make_config()).tokenizer
    features = featurize(Examples("token-classification", (), ()), tokenizer, 16)
    assert len(features) == 0
    assert len(features.word_labels) == len(features.word_starts) == len(features.labels) == 0
