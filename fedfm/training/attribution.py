"""Integrated gradients: what in an input speaks for a prediction, with captum.

    A_i = (x_i - x'_i) * integral_0^1 dF/dx_i (x' + a (x - x')) da,      sum_i A_i = F(x) - F(x')

Sundararajan, Taly, Yan, "Axiomatic Attribution for Deep Networks", ICML 2017, https://arxiv.org/abs/1703.01365. F is
the logit of the predicted class. Of texts x are the embeddings of tokens, x' those of padding (special tokens stay);
of images x are the pixels, x' is black. The integral is a sum over `steps` points: `gap` says how far it is off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedfm.domains.examples import Examples
from fedfm.errors import UserError
from fedfm.models.body import load_body
from fedfm.models.features import Features, collate, featurize
from fedfm.training.trained import TrainedModel

STEPS = 64


@dataclass(frozen=True)
class Attribution:
    """values: of words `[W]`, of an image `[C, h, w]`. names: the words; empty for an image. target: the class.

    difference: F(x) - F(x'). gap: |sum of values - difference| over |difference|, what completeness is missed by.
    """

    names: tuple[str, ...]
    values: np.ndarray
    target: str
    difference: float
    gap: float


def explain_text(model: TrainedModel, text: str | Sequence[str], steps: int = STEPS) -> list[Attribution]:
    """Of a text the predicted class, by word; of a sentence's words each word that is part of an entity, by word."""
    captum = _captum()
    words = tuple(text.split()) if isinstance(text, str) else tuple(text)
    tokenizer = load_body(model.config).tokenizer
    features, places = _of_words(model, words, tokenizer)
    site_model = model.model
    inputs = collate([(features, np.array([0]))], site_model.head.weight.device, site_model.dtype).inputs
    ids = inputs["input_ids"]
    special = torch.tensor(tokenizer.get_special_tokens_mask(ids[0].tolist(), already_has_special_tokens=True)).bool()
    baseline = torch.where(special.to(ids.device), ids, torch.full_like(ids, tokenizer.pad_token_id or 0))
    found = []
    for token, target in _targets(model, ids, places):

        def logit(batch: Tensor, token: int | None = token, target: int = target) -> Tensor:
            site_model.active.rows = 1
            out = site_model({"input_ids": batch})
            return out[:, target] if token is None else out[:, token, target]

        method = captum.LayerIntegratedGradients(logit, _embedding(site_model))
        by_token = method.attribute(ids, baseline, n_steps=steps, internal_batch_size=32).sum(dim=-1)[0]
        with torch.no_grad():
            difference = float(logit(ids) - logit(baseline))
        values = np.zeros(len(words))
        for place, word in enumerate(places):
            if word is not None:
                values[word] += float(by_token[place])
        found.append(_attribution(words, values, model.card.labels[target], difference))
    return found


def explain_image(model: TrainedModel, image: np.ndarray, steps: int = STEPS) -> Attribution:
    """Of an image, uint8 [H, W, C], the predicted class, by pixel and channel."""
    captum, site_model = _captum(), model.model
    features = featurize(Examples("image-classification", image[None], np.zeros(1, np.int64)), None, 0)
    pixels = collate([(features, np.array([0]))], site_model.head.weight.device, site_model.dtype).inputs["images"]

    def logits(batch: Tensor) -> Tensor:
        site_model.active.rows = 1
        return site_model({"images": batch})

    with torch.no_grad():
        target = int(logits(pixels).argmax())
        difference = float(logits(pixels)[0, target] - logits(torch.zeros_like(pixels))[0, target])
    method = captum.IntegratedGradients(logits)
    values = method.attribute(pixels, torch.zeros_like(pixels), target=target, n_steps=steps, internal_batch_size=32)
    return _attribution((), values[0].detach().cpu().numpy(), model.card.labels[target], difference)


def _attribution(names: Sequence[str], values: np.ndarray, target: str, difference: float) -> Attribution:
    missed = abs(float(values.sum()) - difference)  # special tokens are the same in x and x': theirs is nothing
    return Attribution(tuple(names), values, target, difference, missed / max(abs(difference), 1e-12))


def _captum():
    try:
        import captum.attr
    except ImportError:
        mend = 'pip install "fedfm[explain]"'
        raise UserError("the package captum is not installed", where="fedfm explain", mend=mend) from None
    return captum.attr


def _embedding(model: nn.Module) -> nn.Embedding:
    """The table of token embeddings: the one with as many rows as the vocabulary."""
    size = model.body.config.vocab_size
    return next(m for m in model.body.modules() if isinstance(m, nn.Embedding) and m.num_embeddings == size)


def _of_words(model: TrainedModel, words: tuple[str, ...], tokenizer) -> tuple[Features, list[int | None]]:
    """One text as Features, and the word of each of its tokens."""
    length = model.config.local_for(model.card.domain).max_length
    if model.card.task == "token-classification":
        examples = Examples(model.card.task, (words,), (np.zeros(len(words), np.int64),))
    else:
        examples = Examples(model.card.task, (" ".join(words),), np.zeros(1, np.int64))
    features = featurize(examples, tokenizer, length)
    encoded = tokenizer([list(words)], truncation=True, max_length=length, is_split_into_words=True)
    if list(encoded["input_ids"][0]) == features.inputs[0].tolist():
        return features, encoded.word_ids(0)
    # a tokenizer that reads the joined text in another way: its own words are those between spaces
    plain = tokenizer([" ".join(words)], truncation=True, max_length=length, return_offsets_mapping=True)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    spans = plain["offset_mapping"][0]
    return features, [int(np.searchsorted(starts, s, "right")) - 1 if e > s else None for s, e in spans]


def _targets(model: TrainedModel, ids: Tensor, places: list[int | None]) -> list[tuple[int | None, int]]:
    """(token, class) of what is to be explained; token None for a whole text."""
    model.model.active.rows = 1
    with torch.no_grad():
        out = model.model({"input_ids": ids})[0]
    if model.card.task != "token-classification":
        return [(None, int(out.argmax()))]
    first = {word: place for place, word in reversed(list(enumerate(places))) if word is not None}
    best = {place: int(out[place].argmax()) for _, place in sorted(first.items())}
    return [(place, target) for place, target in best.items() if model.card.labels[target] != "O"]
