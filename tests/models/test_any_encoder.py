"""Any encoder will do: families of transformers, written to a folder as `save_pretrained` leaves them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from model_helpers import TAGS, TEXT, image_card, make_bound, make_config, random_encoders, save_encoder, token_inputs

from fedfm.domains.examples import Examples
from fedfm.errors import ModelError
from fedfm.models import body as body_module
from fedfm.models.body import load_body
from fedfm.models.features import featurize
from fedfm.training.evaluation import evaluate
from fedfm.training.fit import SiteWork, fit


@pytest.fixture(autouse=True)
def _no_cache():
    """A body that a test has written, loaded or spoilt is gone after it."""
    yield
    body_module._load.cache_clear()


def examples_of(card):
    labels = np.arange(6) % len(card.labels)
    if card.image_shape:
        channels, height, width = card.image_shape
        pixels = np.random.default_rng(0).integers(0, 256, (6, height, width, channels), np.uint8)
        return Examples(card.task, pixels, labels)
    texts = tuple(f"the bank {word} its profit {'again ' * n}" for n, word in enumerate("abcdef"))
    if card.task == "token-classification":
        words = tuple(tuple(text.split()) for text in texts)
        return Examples(card.task, words, tuple(np.arange(len(w)) % len(card.labels) for w in words))
    return Examples(card.task, texts, labels)


@pytest.mark.parametrize("tuning", ["head", "layernorm", "lora", "full"])
@pytest.mark.parametrize("family", random_encoders())
def test_any_encoder_reads_images_texts_and_words(family, tuning, tmp_path):
    """A folder written by `save_pretrained`: all three tasks train a step, score, and share the same tensors."""
    save_encoder(tmp_path / family, family)
    config = make_config(f"body.name={tmp_path / family}", f"body.tuning={tuning}", "body.image-tokens=9")
    shared = []
    for card in (TEXT, TAGS, image_card(1, 12, 12)):
        matrix = make_bound(config, card, noise=0.01)
        features = featurize(examples_of(card), load_body(config).tokenizer, 32)
        before = matrix.read(0)
        (loss,) = fit(matrix, [SiteWork("s", features, 0, 1)], config.local)
        assert np.isfinite(loss)
        after = matrix.read(0)
        assert all(np.isfinite(value).all() for value in after.values())
        moved = {name for name in after if not np.array_equal(before[name], after[name])}
        assert "head.weight" in moved
        names = [name for name in after if name.startswith("body.")]
        if tuning in ("layernorm", "lora"):
            assert names
            assert any(name in moved for name in names)
        assert np.isfinite(evaluate(matrix.model, [features])[0].tally.loss_sum)
        shared.append(names)
    if tuning != "full":  # there the text embedding trains where text passes it
        assert shared[0] == shared[1] == shared[2]


@pytest.mark.parametrize("family", random_encoders())
def test_a_text_passes_the_body_as_its_own_forward_would(family, tmp_path):
    """Against transformers' own model from the same folder; and image tokens skip what belongs to text alone."""
    model = save_encoder(tmp_path / family, family)
    config = make_config(f"body.name={tmp_path / family}", "body.image-tokens=9")
    inputs = token_inputs(9, 5)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state
        ours = make_bound(config, TAGS, noise=0).model.body(**inputs).last_hidden_state
    scored = inputs["attention_mask"].bool()
    assert (ours - expected)[scored].abs().max() < 1e-5
    matrix = make_bound(config, image_card(1, 12, 12))
    images = {"images": torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))}
    with torch.no_grad():
        before = matrix.model(images)
        for parameter in load_body(config).model.embeddings.parameters():
            parameter.add_(3.0)  # words, positions, token types, norm: nothing of it is on an image's way
        assert torch.equal(matrix.model(images), before)


@pytest.mark.parametrize(("family", "limit"), [("bert", 80), ("roberta", 78), ("distilbert", 80), ("modernbert", None)])
def test_texts_longer_than_the_table_of_positions_are_refused(family, limit, tmp_path):
    """80 positions; RoBERTa counts from behind its padding id 1 and has 78; ModernBERT turns and has no table."""
    save_encoder(tmp_path / family, family)
    config = make_config(f"body.name={tmp_path / family}", "local.max-length=64")
    assert load_body(config).max_tokens == (limit or np.inf)
    matrix = make_bound(config, TAGS)
    with torch.no_grad():
        assert matrix.model(token_inputs(limit or 200)).shape == (1, limit or 200, 3)
    longer = config.replace("domains.ner.local.max-length=100", "domains.medical.local.max-length=100")
    if limit is None:
        assert load_body(longer)
        return
    with pytest.raises(ModelError) as caught:
        load_body(longer)
    assert str(caught.value) == (
        f"domain ner: max-length = 100, but the body reads at most {limit} tokens\n"
        "    mend: lower local.max-length, or domains.NAME.local.max-length"
    )
