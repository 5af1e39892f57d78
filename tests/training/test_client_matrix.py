"""The client matrix: K rows against K times one row, in float64; what a step costs; what trains and what does not."""

from __future__ import annotations

import numpy as np
import pytest
from training_helpers import IMAGE, TAGS, TEXT, make_config, make_features, make_matrix

from fedfm.strategies import make_strategy
from fedfm.training.fit import SiteWork, batch_plan, fit
from fedfm.training.matrix import ClientMatrix

TOLERANCE = 1e-10


def largest_difference(left: dict, right: dict) -> float:
    assert left.keys() == right.keys()
    return max(float(np.abs(left[name] - right[name]).max()) for name in left)


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


@pytest.mark.parametrize("left_out", [(), ("head.bias",), ("body.encoder.layer.0.attention.self.query.lora_A",)])
def test_tensors_lie_in_their_columns_and_nothing_else_is_written(left_out):
    config = make_config("engine.dtype=float32")
    matrix = make_matrix(config, TAGS, rows=2)
    matrix.theta.fill_(-1)
    drawn = np.random.default_rng(0).standard_normal
    given = {n: drawn(shape) for n, (_, _, shape) in matrix.columns.items() if n not in left_out}
    assert len(given) == len(matrix.columns) - len(left_out)
    matrix.load(1, dict(reversed(given.items())))
    flat, back = matrix.flatten(given), matrix.read(1)
    for name, (first, count, _) in matrix.columns.items():
        part = slice(first, first + count)
        wanted = given[name].ravel().astype(np.float32) if name in given else np.full(count, -1, np.float32)
        np.testing.assert_array_equal(matrix.theta[1, part].numpy(), wanted)
        np.testing.assert_array_equal(back[name].ravel(), wanted)
        np.testing.assert_array_equal(flat[part].numpy(), wanted if name in given else np.zeros(count))
    assert bool((matrix.theta[0] == -1).all())


def test_a_foreign_tensor_and_one_of_another_size_are_refused():
    """Also two whose errors make up for each other: together they would fill their columns."""
    matrix = make_matrix(make_config(), TAGS)
    values = matrix.read(0)
    with pytest.raises(KeyError, match=r"no column holds head\.strange"):
        matrix.load(0, values | {"head.strange": np.zeros(1)})
    wide, narrow = (np.zeros(values[name].size + more) for name, more in (("head.weight", 1), ("head.bias", -1)))
    with pytest.raises(ValueError, match="reshape"):
        matrix.load(0, values | {"head.weight": wide, "head.bias": narrow})


def test_a_plan_drawn_ahead_is_the_plan_of_those_settings_and_of_no_others():
    config = make_config("local.epochs=2")
    work = SiteWork("s", make_features(config, TEXT, 20, 1), 0, 1)
    other = config.local.model_copy(update={"epochs": 1})

    def drawn(local=config.local, draws: str = "") -> list:
        return [part.tolist() for part in work.plan(local, draws)]

    wanted, shorter, second = drawn(), drawn(other), drawn(draws="/1")
    assert wanted != second
    work.plan_ahead(config.local)
    assert drawn(other) == shorter  # it was drawn for other settings
    assert drawn(draws="/1") == second
    assert drawn() == wanted  # as drawn ahead
    assert drawn() == wanted  # and drawn anew


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


@pytest.mark.parametrize(("rows", "limit"), [(1, 285), (8, 36), (32, 9)])
def test_a_step_of_many_sites_takes_few_operators(tmp_path, rows, limit):
    """The launch-bound twin of MiniLM: 6 layers, LoRA on query and value, 2 x 16 tokens; views are not counted."""
    from training_helpers import operators_of_a_step, twin

    assert operators_of_a_step(*twin(tmp_path, rows)) / rows <= limit


def test_a_bfloat16_body_trains_as_a_float32_one_does():
    """Losses within 1 %; what trains, and what leaves, is float32."""
    losses = {}
    for dtype in ("float32", "bfloat16"):
        for card in (TEXT, TAGS, IMAGE):
            config = make_config(f"engine.dtype={dtype}", "local.batch-size=4", "local.epochs=3")
            matrix = make_matrix(config, card, rows=2)
            works = [SiteWork(f"s{i}", make_features(config, card, 8, i), 0, 1) for i in range(2)]
            start = matrix.read(0)
            losses[card.task, dtype] = fit(matrix, works, config.local)
            assert all(value.dtype == np.float32 for value in matrix.read(0).values())
            assert largest_difference(matrix.read(0), start) > 1e-4
    for card in (TEXT, TAGS, IMAGE):
        np.testing.assert_allclose(losses[card.task, "bfloat16"], losses[card.task, "float32"], rtol=0.01)


def test_the_classic_cnn_is_the_classic_cnn(tmp_path):
    """body.image-adapter = "lenet" with no layers and H = 84: 44,426 parameters, equal to torch's own after SGD."""
    import torch
    import torch.nn.functional as F
    from training_helpers import save_body

    from fedfm.domains.card import DomainCard
    from fedfm.models.features import collate

    card = DomainCard("digits", "image-classification", tuple("0123456789"), (1, 28, 28))
    config = make_config(
        f"body.name={save_body(tmp_path / 'b', 84, 1)}", "body.weights=none", "body.image-adapter=lenet",
        "local.batch-size=4", "local.optimizer=sgd", "local.learning-rate=0.05", "local.head-learning-rate=0.05",
    )  # fmt: skip
    together = make_matrix(config, card, rows=3)
    assert together.theta.shape[1] == 44_426
    works = [SiteWork(f"s{i}", make_features(config, card, n, i), 0, 1) for i, n in enumerate((9, 4, 6))]
    start = together.read(0)
    fit(together, works, config.local)
    for row, work in enumerate(works):
        p = {name: torch.from_numpy(value).clone().requires_grad_() for name, value in start.items()}
        for indices in batch_plan(work.features.lengths(), config.local, work.generator("batches")):
            batch = collate([(work.features, indices)], "cpu", torch.float64)
            x = (batch.inputs["images"] - 0.5) * 4
            for layer in ("adapter.embed.0", "adapter.embed.3"):
                x = F.max_pool2d(F.relu(F.conv2d(x, p[f"{layer}.weight"], p[f"{layer}.bias"])), 2)
            x = x.flatten(1)
            for layer in ("adapter.embed.7", "adapter.embed.9"):
                x = F.relu(F.linear(x, p[f"{layer}.weight"], p[f"{layer}.bias"]))
            loss = F.cross_entropy(F.linear(x, p["head.weight"], p["head.bias"]), batch.labels)
            gradients = torch.autograd.grad(loss, list(p.values()))
            with torch.no_grad():
                for value, gradient in zip(p.values(), gradients, strict=True):
                    value -= 0.05 * gradient
        expected = {name: value.detach().numpy() for name, value in p.items()}
        assert largest_difference(together.read(row), expected) <= TOLERANCE


def test_auto_takes_as_many_sites_as_pay_and_stays_within_memory(tmp_path):
    from fedfm.training.budget import _longest, bytes_of_a_token, overhead_tokens, sites_at_once

    plenty = 1e12
    config = make_config("local.batch-size=8")
    model = make_matrix(config, TEXT).model
    assert overhead_tokens(model) == pytest.approx(6e7 / (4 * 128 * 128 + 2 * 128 * 256))  # 458
    a_token = bytes_of_a_token(model)
    assert 1_000 < a_token < 1_000_000  # two layers of 128 features in float64
    short, long = (sites_at_once(model, config.local, (words, 0.0), 100, plenty) for words in (4, 40))
    # 8 texts of 7.2 tokens, 35 sites of which fill 2048: 458 / 35 + 57.6 is the least, and K = 28 within 5 % of it
    assert short == 28
    assert short > long > 1
    even, ragged = (sites_at_once(model, config.local, (16, spread), 100, plenty) for spread in (0.0, 10.0))
    assert even > ragged >= 1  # ragged texts pad one another
    # of two texts the longer lies Phi^-1(1.625 / 2.25) = 0.59 deviations above the mean
    assert _longest(16, 10, 1) == pytest.approx(22.8)
    assert _longest(16, 10, 2) == pytest.approx(1.3 * 21.9 + 2, abs=0.02)
    assert sites_at_once(model, config.local, (4, 0.0), 2, plenty) > short  # sites with two examples fill less
    assert sites_at_once(model, config.local, (4, 0.0), 100, 2 * a_token * 8 * 7.3 * 3) == 3  # half of it holds three
    assert sites_at_once(model, config.local, (4, 0.0), 100, 1.0) == 1
    full = ClientMatrix(make_matrix(make_config("body.tuning=full"), TEXT).model, 4)
    assert full.rows == 1
    assert sites_at_once(full.model, config.local, (4, 0.0), 100, plenty) == 1
