"""What frozen layers make of the data, kept: the same training as without, for every family of encoders."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from model_helpers import make_config, random_encoders, save_encoder

from fedfm.domains.card import DomainCard
from fedfm.errors import ModelError
from fedfm.models import frozen
from fedfm.models.body import load_body
from fedfm.models.feature_files import load_features, save_features
from fedfm.models.features import Features, collate
from fedfm.models.frozen import cache_key, freeze, frozen_below
from fedfm.models.ragged import Ragged
from fedfm.models.site_model import build_model, start_weights
from fedfm.training.evaluation import evaluate
from fedfm.training.fit import SiteWork, fit
from fedfm.training.matrix import ClientMatrix

TEXT = DomainCard("finance", "text-classification", ("a", "b", "c"), None)
TAGS = DomainCard("ner", "token-classification", ("O", "B-X", "I-X"), None)
IMAGE = DomainCard("medical", "image-classification", ("a", "b"), (3, 16, 16))
LIMIT = 10**9


def texts(card: DomainCard, lengths, seed: int = 0) -> Features:
    draw = np.random.default_rng(seed)
    ids = Ragged.of([draw.integers(5, 60, n) for n in lengths])
    if card.task == "text-classification":
        return Features(card.task, ids, draw.integers(0, 3, len(lengths)))
    words = Ragged.of([draw.integers(0, 3, n) for n in lengths])
    return Features(card.task, ids, words, words, Ragged.of([np.arange(n) for n in lengths]))


def trained(config, card, features, rows: int = 1):
    matrix = ClientMatrix(build_model(config, card), rows)
    start = start_weights(matrix.model, config.seed)
    for row in range(rows):
        matrix.load(row, start)
    works = [SiteWork(f"s{i}", own, 0, 1) for i, own in enumerate(features)]
    fit(matrix, works, config.local_for(card.domain))
    return matrix


@pytest.mark.parametrize("card", [TEXT, TAGS], ids=lambda card: card.task)
@pytest.mark.parametrize("how", ["body.tuning=head", "body.trainable-layers=1"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_from_kept_activations_is_the_same_to_the_bit_where_texts_are_of_equal_length(
    tmp_path, card, how, dtype
):
    config = make_config(how, f"engine.dtype={dtype}", "local.batch-size=4")
    features = texts(card, [32] * 8)
    plain = trained(config, card, [features])
    kept = freeze(plain.model, features, tmp_path / "kept.npy", LIMIT)
    assert kept.frozen is not None
    again = trained(config, card, [kept])
    assert torch.equal(again.theta, plain.theta)


@pytest.mark.parametrize("card", [TEXT, TAGS], ids=lambda card: card.task)
@pytest.mark.parametrize("how", ["body.tuning=head", "body.trainable-layers=1"])
def test_ragged_texts_and_many_rows_differ_by_rounding_only(tmp_path, card, how):
    """Padding changes the order of a sum: 1e-12 in float64."""
    config = make_config(how, "engine.dtype=float64", "local.batch-size=3")
    sites = [texts(card, [3, 8, 5, 12, 4, 7, 9][:n], n) for n in (7, 4, 5)]
    plain = trained(config, card, sites, rows=3)
    kept = [freeze(plain.model, own, tmp_path / f"{i}.npy", LIMIT) for i, own in enumerate(sites)]
    again = trained(config, card, kept, rows=3)
    assert float((again.theta - plain.theta).detach().abs().max()) <= 1e-12
    for own, other in zip(evaluate(plain.model, sites), evaluate(plain.model, kept), strict=True):
        assert own.tally.loss_sum == pytest.approx(other.tally.loss_sum, abs=1e-10)


@pytest.mark.parametrize("family", sorted(random_encoders()))
def test_every_family_enters_above_the_cut_as_it_does_from_below(family, tmp_path):
    save_encoder(tmp_path / family, family)
    config = make_config(f"body.name={tmp_path / family}", "body.trainable-layers=1", "engine.dtype=float64")
    matrix = ClientMatrix(build_model(config, TAGS))
    matrix.load(0, start_weights(matrix.model, 0))
    features = texts(TAGS, [5, 9, 7])
    kept = freeze(matrix.model, features, tmp_path / "kept.npy", LIMIT)
    if not frozen_below(matrix.model):
        assert kept is features
        return
    indices = np.arange(3)
    with torch.no_grad():
        outs = [matrix.model(collate([(f, indices)], "cpu", torch.float64).inputs) for f in (features, kept)]
    real = torch.arange(9) < torch.tensor([5, 9, 7])[:, None]
    torch.testing.assert_close(outs[0][real], outs[1][real], rtol=0, atol=1e-12)


def test_nothing_is_kept_where_something_trains_below(tmp_path):
    for config, card in [
        (make_config("body.tuning=head"), IMAGE),
        (make_config("body.tuning=lora"), TEXT),
        (make_config("body.tuning=full"), TEXT),
    ]:
        assert frozen_below(build_model(config, card)) == ""


def test_what_has_no_room_is_not_kept_on_disk(tmp_path):
    config = make_config("body.tuning=head")
    matrix = ClientMatrix(build_model(config, TEXT))
    features = texts(TEXT, [4, 5])
    size = 2 * load_body(config).width * 4
    assert freeze(matrix.model, features, tmp_path / "a.npy", size - 1).frozen is not None
    assert not list(tmp_path.iterdir())
    assert freeze(matrix.model, features, tmp_path / "a.npy", size).frozen is not None
    assert [file.name for file in tmp_path.iterdir()] == ["a.npy"]  # and no half-written one beside it


def test_a_full_disk_costs_no_digit_and_leaves_no_file(tmp_path, monkeypatch):
    """Where a sparse file's missing room showed only when its mapping was written to, the process died of it."""
    config = make_config("body.tuning=head")
    matrix = ClientMatrix(build_model(config, TEXT))
    features = texts(TEXT, [4, 5])
    expected = np.array(freeze(matrix.model, features).frozen.pooled)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(frozen.os, "posix_fallocate", full, raising=False)
    found = freeze(matrix.model, features, tmp_path / "a.npy", LIMIT).frozen.pooled
    assert type(found) is np.ndarray and np.array_equal(found, expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("card", [TEXT, TAGS], ids=lambda card: card.task)
@pytest.mark.parametrize("how", ["body.tuning=head", "body.trainable-layers=1"])
def test_what_is_kept_and_what_is_not_are_the_same_bits(tmp_path, card, how):
    """Ragged texts in float32, where padding would show in the last digits."""
    config = make_config(how, "local.batch-size=3")
    matrix = ClientMatrix(build_model(config, card))
    features = texts(card, [3, 8, 5, 12, 8, 7, 3])
    kept = freeze(matrix.model, features, tmp_path / "kept.npy", LIMIT).frozen
    other = freeze(matrix.model, features).frozen
    for one, two in ((kept.pooled, other.pooled), (kept.hidden, other.hidden)):
        assert (one is None) == (two is None)
        if one is not None:
            assert np.array_equal(getattr(one, "values", one), getattr(two, "values", two))


def test_a_kill_while_the_file_is_filled_leaves_nothing_that_would_be_used(tmp_path, monkeypatch):
    """The process ends after the first of three batches; the next one fills the file from the start."""
    config = make_config("body.trainable-layers=1")
    matrix = ClientMatrix(build_model(config, TEXT))
    features, file = texts(TEXT, [4, 5, 6]), tmp_path / "kept.npy"
    whole = freeze(matrix.model, features, tmp_path / "whole.npy", LIMIT)
    states, calls = frozen.states_at_cut, []

    def killed(*args):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return states(*args)

    with monkeypatch.context() as patch:
        patch.setattr(frozen, "states_at_cut", killed)
        with pytest.raises(KeyboardInterrupt):
            freeze(matrix.model, features, file, LIMIT)
    assert not file.exists()
    again = freeze(matrix.model, features, file, LIMIT)
    assert np.array_equal(again.frozen.hidden.values, whole.frozen.hidden.values)


def test_a_file_that_is_there_is_read_and_not_filled_again(tmp_path, monkeypatch):
    config = make_config("body.tuning=head")
    matrix = ClientMatrix(build_model(config, TEXT))
    features, file = texts(TEXT, [4, 5, 6]), tmp_path / "kept.npy"
    first = freeze(matrix.model, features, file, LIMIT)
    monkeypatch.delattr(frozen, "states_at_cut")  # what fills
    again = freeze(matrix.model, features, file, LIMIT)
    assert np.array_equal(again.frozen.pooled, first.frozen.pooled)


def test_the_key_knows_all_that_the_activations_depend_on():
    body = load_body(make_config())
    base = {
        "body": body,
        "settings": make_config().body,
        "kind": "hidden",
        "cut": 1,
        "max_length": 64,
        "dtype": "float32",
    }
    other = [
        {"kind": "pooled"}, {"cut": 2}, {"max_length": 32}, {"dtype": "float64"},
        {"settings": make_config("body.layers=1").body}, {"body": load_body(make_config("body.weights=random"))},
    ]  # fmt: skip
    keys = [cache_key(**base), *(cache_key(**(base | change)) for change in other)]
    assert len(set(keys)) == len(keys)
    assert cache_key(**base) == keys[0]


def test_the_key_is_the_same_after_texts_were_cut():
    """A tokenizer keeps the length to which it cut last; another process may have cut at another or at none."""
    body, settings = load_body(make_config()), make_config().body

    def key():
        frozen._tokenizer_digest.cache_clear()
        return cache_key(body, settings, "hidden", 1, 64, "float32")

    keys = set()
    for length in (8, 16):
        body.tokenizer(["bank " * 20], truncation=True, max_length=length)
        keys.add(key())
    assert len(keys) == 1


@pytest.mark.parametrize("tuning", ["layernorm", "lora", "full"])
def test_only_the_layers_next_to_the_head_train(tuning):
    model = build_model(make_config(f"body.tuning={tuning}", "body.trainable-layers=1"), TEXT)
    in_body = [name for name in model.rows() if name.startswith("body.")]
    assert in_body
    assert all(name.startswith("body.encoder.layer.1.") for name in in_body)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("body.trainable-layers=3",), "body.trainable-layers: the body has 2 layers, not 3"),
        (("body.trainable-layers=1", "body.tuning=head"), 'body.trainable-layers: tuning "head" trains no layer'),
    ],
)
def test_a_number_of_layers_that_does_not_fit_is_refused(overrides, message):
    with pytest.raises(ModelError) as caught:
        build_model(make_config(*overrides), TEXT)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize("card", [TEXT, TAGS], ids=lambda card: card.task)
def test_features_are_read_from_a_file_as_they_were_written(tmp_path, card):
    features = texts(card, [3, 6, 1])
    save_features(tmp_path / "a.npz", features)
    again = load_features(tmp_path / "a.npz", card.task)
    for name in ("inputs", "labels", "word_labels", "word_starts"):
        old, new = getattr(features, name), getattr(again, name)
        assert (old is None) == (new is None)
        if old is not None:
            assert [np.asarray(row).tolist() for row in old] == [np.asarray(row).tolist() for row in new]
    assert (again.truncated, again.pad_id) == (features.truncated, features.pad_id)
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
