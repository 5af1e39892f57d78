"""The client matrix against a plain peft loop, and K rows against K times one row, in float64."""

from __future__ import annotations

import numpy as np
import pytest
from training_helpers import IMAGE, TAGS, TEXT, make_config, make_features, make_matrix, plain_loop

from fedfm.strategies import make_strategy
from fedfm.training.fit import SiteWork, batch_plan, fit

TOLERANCE = 1e-10


def largest_difference(left: dict, right: dict) -> float:
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


@pytest.mark.parametrize("card", [TEXT, TAGS], ids=lambda card: card.task)
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_one_row_equals_the_plain_peft_loop(card, mu):
    """Two epochs of ragged texts, last batch smaller, AdamW with decay, FedProx against the loss with its term."""
    config = make_config(
        "local.epochs=2", "local.batch-size=4", "local.weight-decay=0.05", "local.learning-rate=3e-3",
        "strategy.name=fedprox", f"strategy.proximal-mu={mu}",
    )  # fmt: skip
    matrix = make_matrix(config, card)
    start = matrix.read(0)
    features = make_features(config, card, count=10, seed=1)
    work = SiteWork("s", features, config.seed, 1)
    plan = batch_plan(features.lengths(), config.local, work.generator("batches"))
    assert [len(batch) for batch in plan] == [4, 4, 2] * 2
    fit(matrix, [work], config.local, make_strategy(config.strategy).correct)
    expected = plain_loop(config, card, start, features, plan, mu)
    assert largest_difference(matrix.read(0), expected) <= TOLERANCE
    assert largest_difference(matrix.read(0), start) > 1e-3  # it did learn


@pytest.mark.parametrize("tuning", ["head", "layernorm", "lora"])
@pytest.mark.parametrize("card", [TEXT, TAGS, IMAGE], ids=lambda card: card.task)
def test_many_rows_equal_one_row_at_a_time(card, tuning):
    """Sites of 3, 9, 6 and 1 examples: 2, 5, 3 and 1 steps of ragged batches; the finished ones leave early."""
    config = make_config(
        "local.batch-size=2", f"body.tuning={tuning}", "local.clip-norm=0.5", "local.schedule=cosine",
        "local.augment=true", "strategy.name=fedprox", "strategy.proximal-mu=0.3", "body.image-tokens=6",
    )  # fmt: skip
    correct = make_strategy(config.strategy).correct
    counts = (3, 9, 6, 1)
    works = [SiteWork(f"s{i}", make_features(config, card, n, i), config.seed, 1) for i, n in enumerate(counts)]
    together = make_matrix(config, card, rows=len(works))
    losses = fit(together, works, config.local, correct)
    for row, work in enumerate(works):
        alone = make_matrix(config, card)
        (loss,) = fit(alone, [work], config.local, correct)
        assert largest_difference(together.read(row), alone.read(0)) <= TOLERANCE
        assert losses[row] == pytest.approx(loss, abs=1e-12)


def test_full_tuning_trains_every_tensor_of_the_body_and_leaves_the_shared_body_alone():
    from fedfm.models.body import load_body, weights_sha256

    config = make_config("body.tuning=full", "local.batch-size=4")
    before = weights_sha256(load_body(config).model)
    matrix = make_matrix(config, TEXT)
    start = matrix.read(0)
    fit(matrix, [SiteWork("s", make_features(config, TEXT, 8, 1), 0, 1)], config.local)
    trained = matrix.read(0)
    body = {f"body.{name}" for name, _ in load_body(config).model.named_parameters()}
    assert body | {"head.weight", "head.bias"} == trained.keys()
    moved = {name for name in trained if not np.array_equal(trained[name], start[name])}
    assert trained.keys() - moved <= {"body.embeddings.word_embeddings.weight"} | {
        name
        for name in trained
        if name.endswith("key.bias")  # a bias of the keys cannot change a softmax
    }
    assert weights_sha256(load_body(config).model) == before


def test_a_row_is_written_and_read_back():
    config = make_config()
    matrix = make_matrix(config, IMAGE, rows=3)
    draw = np.random.default_rng(0)
    values = {name: draw.standard_normal(shape) for name, (_, _, shape) in matrix.columns.items()}
    before = matrix.read(0)
    matrix.load(1, values)
    assert largest_difference(matrix.read(1), values) == 0
    assert largest_difference(matrix.read(0), before) == 0


def test_length_buckets_hold_every_example_once_and_pad_less():
    """40 texts of random length in batches of 4: each is in one batch of an epoch; like lengths stand together."""
    lengths = np.random.default_rng(3).integers(5, 60, 40)

    def plan(buckets: bool) -> list:
        local = make_config("local.batch-size=4", f"local.length-buckets={str(buckets).lower()}").local
        return batch_plan(lengths, local, np.random.default_rng(0))

    def padded(batches: list) -> int:
        return sum(len(batch) * lengths[batch].max() for batch in batches)

    for batches in (plan(True), plan(False)):
        assert sorted(np.concatenate(batches).tolist()) == list(range(40))
    assert lengths.sum() <= padded(plan(True)) < 1.15 * lengths.sum() < padded(plan(False))
