"""One local full-batch step at every site and one mean, against one step on all data in one place."""

from __future__ import annotations

import numpy as np
import pytest
from strategy_helpers import aggregate, largest_difference, strategy_named

from fedfm.arrays import Arrays
from fedfm.config import load_config
from fedfm.domains.card import DomainCard
from fedfm.domains.examples import Examples
from fedfm.models.body import load_body
from fedfm.models.features import featurize
from fedfm.models.site_model import build_model, start_weights
from fedfm.strategies import Update
from fedfm.training.fit import SiteWork, fit
from fedfm.training.matrix import ClientMatrix

SIZES = (3, 9, 6, 1)
WORDS = ("profit", "rose", "fell", "loss", "the", "bank", "strong", "weak", "not", "sales")
TEXT = DomainCard("finance", "text-classification", ("negative", "neutral", "positive"))
IMAGE = DomainCard("medical", "image-classification", ("a", "b"), (3, 12, 10))


def examples_of(card: DomainCard) -> Examples:
    draw = np.random.default_rng(11)
    labels = draw.integers(0, len(card.labels), sum(SIZES))
    if card.image_shape:
        channels, height, width = card.image_shape
        return Examples(card.task, draw.integers(0, 256, (sum(SIZES), height, width, channels), np.uint8), labels)
    return Examples(card.task, tuple(" ".join(draw.choice(WORDS, draw.integers(2, 12))) for _ in labels), labels)


@pytest.mark.parametrize("tuning", ["head", "layernorm", "lora", "full"])
@pytest.mark.parametrize("card", [TEXT, IMAGE], ids=lambda card: card.task)
def test_one_full_batch_step_over_all_sites_is_one_centralised_step(card, tuning):
    """sum_k (n_k / n) (w - eta grad F_k) = w - eta grad F, F = mean loss of all examples; float64, 1e-12.

    Unequal sites, an SGD step of its own rate for body and head, through `fit`, `descend` and the strategy.
    """
    config = load_config(
        {}, ["engine.dtype=float64", "local.optimizer=sgd", "local.batch-size=64", "local.learning-rate=0.3",
             "local.head-learning-rate=0.7", f"body.tuning={tuning}", "body.layers=1", "body.image-tokens=4"],
    )  # fmt: skip
    matrix = ClientMatrix(build_model(config, card))
    draw = np.random.default_rng(5)  # away from B = 0, where half of the gradients vanish
    start = {
        name: value + 0.02 * draw.standard_normal(value.shape) for name, value in start_weights(matrix.model, 0).items()
    }

    def step(examples: Examples) -> Arrays:
        features = featurize(examples, load_body(config).tokenizer, 64)
        matrix.load(0, start)
        fit(matrix, [SiteWork("s", features, 0, 1)], config.local, strategy_named("fedavg").correct)
        return {name: value - start[name] for name, value in matrix.read(0).items()}

    everything = examples_of(card)
    borders = np.cumsum((0, *SIZES))
    updates = [
        Update(f"s{k}", card.domain, size, step(everything.take(np.arange(first, first + size))))
        for k, (size, first) in enumerate(zip(SIZES, borders[:-1], strict=True))
    ]
    federated = aggregate(strategy_named("fedavg"), start, updates)
    centralised = {name: start[name] + change for name, change in step(everything).items()}
    assert largest_difference(federated, centralised) < 1e-12
    assert largest_difference(centralised, start) > 1e-3  # a step was made
    flat = aggregate(strategy_named("fedavg"), start, [Update(u.site, u.domain, 1, u.delta) for u in updates])
    assert largest_difference(flat, centralised) > 1e-6  # and the sizes of the sites matter
