"""The layers of BERT and its kin without what transformers does around them.

Of a small batch most of a layer's time is Python: wrappers of arguments, dispatch of attention, chunking, dropout that
drops nothing. What is left here is the arithmetic, operator for operator that of transformers, in the same order, so
that not a digit changes. The modules stay where and what they are: whatever tuning puts in their places takes part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from itertools import groupby

import torch.nn.functional as F
from torch import Tensor, nn

from fedfm.models.frozen_layer import FrozenLayer, through

KIN = {  # classes of layers that are one architecture under several names
    "BertLayer", "RobertaLayer", "ElectraLayer", "CamembertLayer", "XLMRobertaLayer", "Data2VecTextLayer",
}  # fmt: skip
EMBEDDINGS = {"BertEmbeddings", "ElectraEmbeddings"}  # in those of the others a place is counted from the padding


class PlainLayer:
    """The forward pass of one layer of `KIN`, that stands in for `layer.forward`.

        a = LayerNorm(W_o attention(W_q x, W_k x, W_v x) + x)        y = LayerNorm(W_2 act(W_1 a) + a)

    Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019, https://arxiv.org/abs/1810.04805.
    """

    def __init__(self, layer: nn.Module):
        self.attention, self.attended = layer.attention.self, layer.attention.output
        self.inner, self.outer = layer.intermediate, layer.output

    def __call__(self, hidden: Tensor, mask: Tensor | None = None, *_: None, **__: None) -> Tensor:
        """hidden `[N, S, H]`, mask as `scaled_dot_product_attention` takes it -> `[N, S, H]`."""
        own, parts = self.attention, self.attention._modules
        heads = (*hidden.shape[:-1], -1, own.attention_head_size)
        query = parts["query"](hidden).view(heads).transpose(1, 2)
        key = parts["key"](hidden).view(heads).transpose(1, 2)
        value = parts["value"](hidden).view(heads).transpose(1, 2)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=own.scaling)
        seen = seen.transpose(1, 2).reshape(hidden.shape)
        seen = _add_and_normalise(self.attended, seen, hidden)
        inner = self.inner._modules
        return _add_and_normalise(self.outer, inner["intermediate_act_fn"](inner["dense"](seen)), seen)


class PlainEmbedding:
    """The embedding of texts that holds `embeddings`, one of `EMBEDDINGS`: ids `[N, S]` -> `[N, S, H]`.

    LayerNorm(W[ids] + T[0] + P[0], ..., W[ids] + T[0] + P[S - 1])        no token is of a second sentence
    """

    def __init__(self, embeddings: nn.Module):
        self.parts = embeddings._modules

    def __call__(self, input_ids: Tensor) -> Tensor:
        kinds, places = self.parts["token_type_embeddings"].weight, self.parts["position_embeddings"].weight
        known = self.parts["word_embeddings"](input_ids) + kinds[0]  # called: explanations listen there
        return self.parts["LayerNorm"].forward(known.add_(places[: input_ids.shape[1]]))


def plain_embedding(embeddings: nn.Module, trained: Collection[nn.Module] = ()) -> Callable[[Tensor], Tensor]:
    """What to call with token ids for a model's embedding: its own forward pass where it trains or is none of ours."""
    is_frozen = not any(module is one for module in embeddings.modules() for one in trained)
    return PlainEmbedding(embeddings) if is_frozen and type(embeddings).__name__ in EMBEDDINGS else embeddings.forward


def _add_and_normalise(output: nn.Module, x: Tensor, residual: Tensor) -> Tensor:
    parts = output._modules
    return parts["LayerNorm"](parts["dense"](x) + residual)


def one_after_the_other(layers: Iterable[nn.Module], hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Layers that `simplify` has simplified, frozen ones side by side as one. No hook of a module hears of it."""
    for is_frozen, run in groupby((layer.forward for layer in layers), lambda forward: type(forward) is FrozenLayer):
        if is_frozen:
            hidden = through(list(run), hidden, mask)
            continue
        for forward in run:
            hidden = forward(hidden, mask)
    return hidden


def simplify(model: nn.Module, trained: Collection[nn.Module] = ()) -> bool:
    """Give the layers of an encoder that never drops out, where they are of `KIN`, their plain forward pass.

    trained: modules whose own weights will train. True where what is left of the encoder's forward pass is its
    embedding and its layers, one after the other.
    """
    config = model.config
    if config._attn_implementation != "sdpa" or getattr(config, "is_decoder", False):
        return False
    layers = [module for module in model.modules() if type(module).__name__ in KIN]
    for layer in layers:
        is_frozen = not any(module is one for module in layer.modules() for one in trained)
        layer.forward = FrozenLayer(layer) if is_frozen and FrozenLayer.fits(layer) else PlainLayer(layer)
    return bool(layers) and {name for name, _ in model.named_children()} == {"embeddings", "encoder"}
