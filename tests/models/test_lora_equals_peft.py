"""Our LoRA on a body against peft's, on the same weights; and an untouched one against the body itself."""

from __future__ import annotations

import pytest
import torch
from model_helpers import TAGS, image_card, make_bound, make_config, token_inputs
from peft import LoraConfig, get_peft_model

from fedfm.models.body import load_body
from fedfm.models.site_model import _same_tensors

TARGETS = {"all": ("all-linear",), "attention": ("query", "value"), "one": ("key",)}


def peft_twin(config, matrix):
    """peft's model over the same frozen tensors, with the values of the matrix' row; its own names, its own forward."""
    targets = config.body.lora_targets
    wanted = targets[0] if targets == ("all-linear",) else list(targets)
    lora = LoraConfig(r=config.body.lora_rank, lora_alpha=config.body.lora_alpha, target_modules=wanted)
    twin = get_peft_model(_same_tensors(load_body(config).model), lora).eval()
    values = matrix.read(0)
    trained = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    ours = {name for name in values if name.startswith("body.")}
    assert {to_our_name(name) for name in trained} == ours
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(torch.from_numpy(values[to_our_name(name)]))
    return twin


def to_our_name(name: str) -> str:
    return "body." + name.removeprefix("base_model.model.").removesuffix(".default.weight")


@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize(("rank", "alpha"), [(8, 16), (3, 5)])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
def test_text_forward_equals_peft(targets, rank, alpha, dtype, tolerance):
    """Hidden states of a ragged batch, relative to the largest of them, before any head."""
    named = ",".join(f'"{name}"' for name in TARGETS[targets])
    config = make_config(
        f"body.lora-rank={rank}", f"body.lora-alpha={alpha}", f"body.lora-targets=[{named}]", f"engine.dtype={dtype}"
    )
    matrix = make_bound(config, TAGS)
    inputs = token_inputs(9, 4, 7)
    with torch.no_grad():
        ours = matrix.model.body(**inputs).last_hidden_state
        theirs = peft_twin(config, matrix)(**inputs).last_hidden_state
        body = load_body(config).model(**inputs).last_hidden_state
    assert (ours - theirs).abs().max() < tolerance * theirs.abs().max()
    assert (ours - body).abs().max() > 1e-2  # the adapters do something here


def test_image_forward_equals_peft_behind_the_embedding():
    """peft's twin is given the image tokens past its embedding: the same layers, 1e-6."""
    from fedfm.models.site_model import _Entrance

    config = make_config("body.image-tokens=9")
    matrix = make_bound(config, image_card(1, 12, 12))
    twin = peft_twin(config, matrix)
    inner = twin.base_model.model
    inner.embeddings = _Entrance(inner.embeddings)
    images = torch.rand(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = matrix.model.adapter(images)
        ours = matrix.model.body(inputs_embeds=tokens).last_hidden_state
        theirs = inner(inputs_embeds=tokens).last_hidden_state
    assert (ours - theirs).abs().max() < 1e-6


def test_at_the_start_lora_is_the_body_itself():
    config = make_config()
    matrix = make_bound(config, TAGS, noise=0)
    inputs = token_inputs(6, 3)
    with torch.no_grad():
        ours = matrix.model.body(**inputs).last_hidden_state
        body = load_body(config).model(**inputs).last_hidden_state
    assert torch.equal(ours, body)
