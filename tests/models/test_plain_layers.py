"""The plain forward pass of a layer is transformers' own, digit for digit, wherever it stands in for it."""

from __future__ import annotations

import copy

import pytest
import torch
from model_helpers import TEXT, make_bound, make_config, random_encoders, save_encoder, token_inputs

from fedfm.models import body as body_module
from fedfm.models.frozen_layer import FrozenLayer
from fedfm.models.plain_layers import EMBEDDINGS, KIN, PlainEmbedding, PlainLayer, plain_embedding, simplify

SIMPLE = {"bert", "roberta", "electra", "xlm-roberta"}  # families whose layers are of KIN


@pytest.fixture(autouse=True)
def _no_cache():
    yield
    body_module._load.cache_clear()


def is_simple(model) -> bool:
    return any(isinstance(module.__dict__.get("forward"), PlainLayer | FrozenLayer) for module in model.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lengths", [(9, 9), (9, 5, 2)], ids=["without a mask", "padded"])
@pytest.mark.parametrize("family", sorted(SIMPLE))
def test_states_and_gradients_are_the_same_bits(family, lengths, dtype, tmp_path):
    theirs = save_encoder(tmp_path / family, family).eval().to(dtype)
    ours = copy.deepcopy(theirs)
    simplify(ours)
    assert is_simple(ours)
    inputs = token_inputs(*lengths)
    mask = inputs["attention_mask"].bool()[:, None, None, :].expand(-1, 1, max(lengths), -1)
    found = []
    for model in (theirs, ours):
        model.requires_grad_(True)
        states = model(inputs["input_ids"], attention_mask=None if len(set(lengths)) == 1 else mask).last_hidden_state
        weights = [value for name, value in model.named_parameters() if ".layer." in f".{name}"]
        found.append([states, *torch.autograd.grad(states.square().sum(), weights)])
    assert len(found[0]) > 20
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("family", random_encoders())
def test_an_embedding_is_the_same_bits(family, dtype, tmp_path):
    """Of the plain one, and of those that stay as they are."""
    embeddings = save_encoder(tmp_path / family, family).eval().to(dtype).embeddings
    embed = plain_embedding(embeddings)
    assert isinstance(embed, PlainEmbedding) == (family in ("bert", "electra"))
    for lengths in ((9, 9), (9, 5, 2)):
        ids = token_inputs(*lengths)["input_ids"]
        assert torch.equal(embed(ids), embeddings(ids))
    assert plain_embedding(embeddings, [next(embeddings.children())]) == embeddings.forward


@pytest.mark.parametrize("family", random_encoders())
def test_only_the_layers_that_it_knows_are_replaced(family, tmp_path):
    model = save_encoder(tmp_path / family, family)
    simplify(model)
    assert is_simple(model) == (family in SIMPLE)


def test_a_body_that_attends_otherwise_keeps_its_own(tmp_path):
    for change in ({"_attn_implementation": "eager"}, {"is_decoder": True}):
        model = save_encoder(tmp_path / "bert", "bert")
        for name, value in change.items():
            setattr(model.config, name, value)
        simplify(model)
        assert not is_simple(model)


def test_the_names_are_those_of_transformers_and_the_built_in_body_uses_it():
    """A class that a newer transformers calls otherwise would be slow without a word."""
    from transformers.models import bert, camembert, data2vec, electra, roberta, xlm_roberta

    modules = (
        bert.modeling_bert, camembert.modeling_camembert, data2vec.modeling_data2vec_text, electra.modeling_electra,
        roberta.modeling_roberta, xlm_roberta.modeling_xlm_roberta,
    )  # fmt: skip
    assert {name for module in modules for name in KIN if hasattr(module, name)} == KIN
    assert {name for module in modules for name in EMBEDDINGS if hasattr(module, name)} == EMBEDDINGS
    model = make_bound(make_config("body.name=tiny"), TEXT).model
    assert is_simple(model)
    assert isinstance(model.embed, PlainEmbedding)
