"""A frozen layer against transformers' own layer and torch's own graph of it, in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from model_helpers import TAGS, TEXT, image_card, make_bound, make_config, save_encoder, token_inputs
from torch.autograd import gradcheck

from fedfm.models import frozen_layer
from fedfm.models.frozen_layer import FrozenLayer, through
from fedfm.models.plain_layers import PlainLayer, simplify
from fedfm.training.matrix import ClientMatrix

FAMILIES = ("bert", "electra", "roberta", "xlm-roberta")


def stand_ins(model) -> set[type]:
    """What stands in for the forward pass of the layers."""
    return {type(m.__dict__["forward"]) for m in model.modules() if "forward" in m.__dict__}


def padded(*lengths: int) -> torch.Tensor | None:
    mask = token_inputs(*lengths)["attention_mask"].bool()
    return None if mask.all() else mask[:, None, None, :].expand(-1, 1, max(lengths), -1)


@pytest.mark.parametrize("lengths", [(9, 9), (9, 5, 2)], ids=["without a mask", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_states_are_the_bodys_and_so_is_the_gradient_of_its_input(family, lengths, dtype, tolerance, tmp_path):
    """The states digit for digit; of the gradient sums are taken in another order."""
    theirs = save_encoder(tmp_path / family, family).to(dtype).requires_grad_(False)
    ours = copy.deepcopy(theirs)
    simplify(ours)
    assert stand_ins(ours) == {FrozenLayer}
    shape, draw = (len(lengths), max(lengths), 32), torch.Generator().manual_seed(0)
    tokens, found = torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype), []
    for model in (theirs, ours):
        hidden = tokens.clone().requires_grad_()
        mask = padded(*lengths)
        states = hidden
        for layer in model.encoder.layer:
            states = layer(states, mask)
        found.append((states, torch.autograd.grad((states**3).sum(), hidden)[0]))
    (states, gradient), (own_states, own_gradient) = found
    assert torch.equal(own_states, states)
    assert (own_gradient - gradient).abs().max() < tolerance * gradient.abs().max()


@pytest.mark.parametrize("targets", ['["query","value"]', '["key"]', '["dense"]', '["all-linear"]'])
@pytest.mark.parametrize("domain_rank", [0, 2])
@pytest.mark.parametrize("is_merged", [False, True], ids=["as it is", "merged"])
def test_gradients_of_factors_are_those_of_torchs_own_graph(targets, domain_rank, is_merged):
    """The oracle: the same modules with `PlainLayer` around them and their updates by ordinary operators."""
    keys = f"body.lora-targets={targets}", f"body.domain-lora-rank={domain_rank}", "body.lora-rank=3"
    matrix = make_bound(make_config("engine.dtype=float64", *keys), TAGS)
    model = matrix.model
    if is_merged:
        some = next(name for name in model.rows() if "layer.1" in name)
        shape = model.rows()[some].base.weight.shape
        draw = torch.Generator().manual_seed(4)
        model.merge({f"merged/{some}.weight": 0.1 * torch.randn(shape, generator=draw).numpy()})
    inputs = token_inputs(9, 4, 7) | {"attention_mask": token_inputs(9, 4, 7)["attention_mask"].bool()}
    found = []
    for oracle in (False, True):
        if oracle:
            for layer in model.body.encoder.layer:
                layer.forward = PlainLayer(layer)
            for module in model.rows().values():
                if hasattr(module, "linear"):
                    module.forward = by_ordinary_operators(module)
        logits = model(inputs)
        matrix.differentiate((logits**2).sum()[None], 1)
        found.append((logits.detach().clone(), matrix.grad.clone()))
    (logits, gradient), (expected_logits, expected) = found
    assert stand_ins(model) >= {PlainLayer}
    assert (logits - expected_logits).abs().max() < 1e-13 * expected_logits.abs().max()
    assert (gradient - expected).abs().max() < 1e-12 * expected.abs().max()
    assert all((expected[0, first : first + count] != 0).any() for first, count, _ in matrix.columns.values())


@pytest.mark.parametrize("card", [TAGS, image_card(height=8, width=8)], ids=["words", "images"])
@pytest.mark.parametrize("targets", ['["query","value"]', '["all-linear"]'])
@pytest.mark.parametrize("is_gpu", [False, True], ids=["on a CPU", "as on a GPU"])
def test_in_bfloat16_it_computes_what_autocast_does(card, targets, is_gpu, monkeypatch):
    """The states of `PlainLayer` under autocast digit for digit, and gradients as near to those in float64.

    On a GPU autocast computes norms in float32, which is played here on a CPU.
    """
    if is_gpu:
        monkeypatch.setattr(frozen_layer, "norm_type", lambda device: torch.float32)
    keys = "body.name=tiny", f"body.lora-targets={targets}", "body.lora-rank=3"
    matrix, exact = (make_bound(make_config(f"engine.dtype={t}", *keys), card) for t in ("bfloat16", "float64"))
    with torch.no_grad():
        for own, rounded in zip(exact.model.parameters(), matrix.model.parameters(), strict=True):
            own.copy_(rounded)
    inputs = token_inputs(9, 4, 7) | {"attention_mask": token_inputs(9, 4, 7)["attention_mask"].bool()}
    if card is not TAGS:
        inputs = {"images": torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert stand_ins(matrix.model.body) == {FrozenLayer}
    logits, gradient = logits_and_gradient(matrix, inputs)
    for layer in matrix.model.body.encoder.layer:
        layer.forward = PlainLayer(layer)
        for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm) if is_gpu else ():
            norm.forward = in_float32(norm)
    expected_logits, expected = logits_and_gradient(matrix, inputs)
    truth = logits_and_gradient(exact, {n: v.double() if v.is_floating_point() else v for n, v in inputs.items()})[1]
    assert torch.equal(logits, expected_logits)
    assert 0 < (gradient - truth).norm() < 1.1 * (expected - truth).norm() < 0.1 * truth.norm()
    assert all((gradient[0, first : first + count] != 0).any() for first, count, _ in matrix.columns.values())


def in_float32(norm):
    weights = norm.weight.float(), norm.bias.float()
    return lambda x: torch.nn.functional.layer_norm(x.float(), norm.normalized_shape, *weights, norm.eps)


def logits_and_gradient(matrix, inputs):
    logits = matrix.model(inputs)
    matrix.differentiate((logits**2).sum()[None], 1)
    return logits.detach().clone(), matrix.grad.clone()


def by_ordinary_operators(module):
    def forward(x):
        linear = module.linear()
        y = x @ linear.weight.T + linear.bias
        for a, b, *_ in linear.pairs:
            y = y + linear.scale * (x @ a[0].T) @ b[0].T
        return y

    return forward


def test_gradients_are_those_of_finite_differences(tmp_path):
    layer = save_encoder(tmp_path / "bert", "bert").double().requires_grad_(False).encoder.layer[0]
    frozen, mask = FrozenLayer(layer), padded(4, 2)
    draw = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 4, 32, dtype=torch.float64, generator=draw).requires_grad_()
    assert gradcheck(lambda x: frozen(x, mask), (hidden,))


def test_a_second_derivative_is_refused_instead_of_wrong(tmp_path):
    layer = save_encoder(tmp_path / "bert", "bert").requires_grad_(False).encoder.layer[0]
    hidden = torch.randn(2, 4, 32).requires_grad_()
    (first,) = torch.autograd.grad((FrozenLayer(layer)(hidden, None) ** 2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ((), {FrozenLayer}),
        (("body.tuning=head",), {FrozenLayer}),
        (("body.tuning=layernorm",), {PlainLayer}),
        (("body.tuning=full",), {PlainLayer}),
        (("body.tuning=full", "body.trainable-layers=1"), {FrozenLayer, PlainLayer}),
        (("engine.dtype=bfloat16",), {FrozenLayer}),
    ],
    ids=["lora", "head", "layernorm", "full", "one full layer", "bfloat16"],
)
def test_it_stands_in_where_nothing_but_lora_trains(keys, expected):
    """Elsewhere a gradient would be missing."""
    model = make_bound(make_config("body.name=tiny", *keys), TEXT).model
    assert stand_ins(model.body) == expected


def test_another_activation_keeps_the_plain_layer(tmp_path):
    model = save_encoder(tmp_path / "bert", "bert").requires_grad_(False)
    for layer in model.encoder.layer:
        layer.intermediate.intermediate_act_fn = torch.nn.ReLU()
    simplify(model)
    assert stand_ins(model) == {PlainLayer}


@pytest.mark.parametrize("card", [TEXT, TAGS, image_card(1, 12, 12)], ids=["texts", "tags", "images"])
@pytest.mark.parametrize("layers", [0, 1], ids=["all layers", "the top one"])
@pytest.mark.parametrize("tuning", ["lora", "layernorm"])  # one node for all; a frozen layer and a plain one
def test_layer_after_layer_is_the_bodys_own_forward_pass(card, layers, tuning):
    keys = "body.image-tokens=9", f"body.tuning={tuning}", f"body.trainable-layers={layers}"
    model = make_bound(make_config(*keys), card).model
    assert model.is_plain
    draw = torch.Generator().manual_seed(0)
    inputs = token_inputs(9, 4, 7) | {"attention_mask": token_inputs(9, 4, 7)["attention_mask"].bool()}
    if card.image_shape:
        inputs = {"images": torch.rand(3, *card.image_shape, generator=draw)}
    elif model.cut:
        inputs = {"hidden": torch.randn(3, 9, 128, generator=draw), "attention_mask": inputs["attention_mask"]}
    ours = model(inputs)
    model.is_plain = False
    assert torch.equal(ours, model(inputs))


def nodes(states: torch.Tensor) -> int:
    """How many nodes of the graph lie between `states` and a leaf, along the first input of each."""
    node, count = states.grad_fn, 0
    while node is not None and type(node).__name__ != "AccumulateGrad":
        count, node = count + (type(node).__name__ == "_LayersBackward"), node.next_functions[0][0]
    return count


@pytest.mark.parametrize("lengths", [(9, 9), (9, 5, 2)], ids=["without a mask", "padded"])
@pytest.mark.parametrize("trained", [0, 1], ids=["all layers train", "the top one trains"])
def test_small_states_pass_all_layers_in_one_node_and_large_ones_a_node_for_each(lengths, trained, monkeypatch):
    """Digit for digit the same, the gradients of the input and of every factor too."""
    keys = "body.lora-rank=3", 'body.lora-targets=["query","value"]', f"body.trainable-layers={trained}"
    matrix = make_bound(make_config(*keys), TAGS)
    layers, mask = [layer.forward for layer in matrix.model.body.encoder.layer], padded(*lengths)
    draw, found = torch.Generator().manual_seed(0), []
    hidden = torch.randn(len(lengths), max(lengths), 128, generator=draw).requires_grad_()
    change = torch.randn(hidden.shape, generator=draw)
    for large in (2**16, 0):
        monkeypatch.setattr(frozen_layer, "LARGE", large)
        states = through(layers, hidden, mask)
        assert nodes(states) == (1 if large else len(layers))
        gradients = torch.autograd.grad(states, [hidden, *matrix.activate(1)], change, allow_unused=True)
        found.append([states.detach(), *(g for g in gradients if g is not None)])
    assert len(found[0]) == 2 + 4 * (trained or len(layers))  # A and B of query and value
    assert all(torch.equal(one, other) and one.any() for one, other in zip(*found, strict=True))


def test_nothing_is_kept_below_the_lowest_layer_that_trains():
    """Where the input wants no gradient either: as much is kept as if the top layer stood alone."""
    model, kept = make_bound(make_config("body.trainable-layers=1"), TAGS).model, []
    layers, hidden = [layer.forward for layer in model.body.encoder.layer], torch.randn(2, 5, 128)
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        through(layers, hidden)
        in_all = len(kept)
        through(layers[-1:], hidden)
    assert len(layers) == 2
    assert 0 < in_all == len(kept) - in_all


@pytest.mark.parametrize(
    ("targets", "narrow", "wide"),
    [
        ('["key"]', ["its input", "LayerNorm_1's", "LayerNorm_2's"], ["GELU's"]),
        ('["dense"]', ["W_o's", "W_1's", "LayerNorm_1's", "LayerNorm_2's"], ["GELU's", "W_2's"]),
    ],
    ids=["before attention", "after it"],
)
def test_only_inputs_that_a_gradient_wants_are_kept(targets, narrow, wide):
    """Those of norms, of GELU and of the linear layers with LoRA: that of W_2 is the largest table of a layer."""
    model = make_bound(make_config(f"body.lora-targets={targets}"), TAGS).model
    hidden, kept = torch.randn(2, 5, 128, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda value: kept.append(value) or value, lambda value: value):
        model.body.encoder.layer[0](hidden, None)
    assert [sum(value.shape == (10, width) for value in kept) for width in (128, 256)] == [len(narrow), len(wide)]


def test_as_many_rows_take_part_as_are_active():
    """Scoring sets their number to one by itself, whatever number trained before."""
    matrix = ClientMatrix(make_bound(make_config("engine.dtype=float64"), TAGS).model, 3)
    draw = torch.Generator().manual_seed(0)
    matrix.theta.copy_(torch.randn(matrix.theta.shape, generator=draw, dtype=torch.float64) * 0.05)
    inputs = {"input_ids": token_inputs(6, 6, 6)["input_ids"]}
    together = matrix.model(inputs)
    matrix.model.active.rows = 1
    alone = matrix.model({"input_ids": inputs["input_ids"][:1]})
    assert (alone - together[:1]).abs().max() < 1e-12
    matrix.model.active.rows = 3
    assert torch.equal(matrix.model(inputs), together)
