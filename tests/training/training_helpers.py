"""Small sites, small bodies, and a counter of operators."""

from __future__ import annotations

import numpy as np
import torch

from fedfm.config import RunConfig, load_config
from fedfm.domains.card import DomainCard
from fedfm.domains.examples import Examples
from fedfm.models.body import load_body
from fedfm.models.features import Features, featurize
from fedfm.models.site_model import build_model, start_weights
from fedfm.training.matrix import ClientMatrix

WORDS = [
    "profit",
    "rose",
    "fell",
    "loss",
    "the",
    "of",
    "bank",
    "strong",
    "weak",
    "not",
    "shares",
    "market",
    "quarter",
    "sales",
]
TEXT = DomainCard("finance", "text-classification", ("negative", "neutral", "positive"))
TAGS = DomainCard("ner", "token-classification", ("O", "B-ORG", "I-ORG"))
IMAGE = DomainCard("medical", "image-classification", ("a", "b"), (3, 12, 10))


def make_config(*overrides: str) -> RunConfig:
    return load_config({}, ["engine.dtype=float64", *overrides])


def make_matrix(config: RunConfig, card: DomainCard, rows: int = 1) -> ClientMatrix:
    matrix = ClientMatrix(build_model(config, card), rows)
    start = start_weights(matrix.model, config.seed)
    draw = np.random.default_rng(5)  # away from B = 0, where half of the gradients vanish
    start = {name: value + 0.02 * draw.standard_normal(value.shape) for name, value in start.items()}
    for row in range(rows):
        matrix.load(row, start)
    return matrix


def make_features(config: RunConfig, card: DomainCard, count: int, seed: int) -> Features:
    draw = np.random.default_rng(seed)
    if card.task == "image-classification":
        channels, height, width = card.image_shape
        images = draw.integers(0, 256, (count, height, width, channels), dtype=np.uint8)
        examples = Examples(card.task, images, draw.integers(0, len(card.labels), count))
    else:
        sentences = [tuple(draw.choice(WORDS, draw.integers(3, 12))) for _ in range(count)]
        if card.task == "token-classification":
            tags = tuple(draw.integers(0, len(card.labels), len(words)) for words in sentences)
            examples = Examples(card.task, tuple(sentences), tags)
        else:
            texts = tuple(" ".join(words) for words in sentences)
            examples = Examples(card.task, texts, draw.integers(0, len(card.labels), count))
    return featurize(examples, load_body(config).tokenizer, config.local.max_length)


def save_body(folder, width: int, layers: int):
    """A BERT of one head with the built-in tokenizer, as a folder that `body.name` takes."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    from fedfm.models.body import TINY_TOKENIZER

    size = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": 1, "intermediate_size": 8}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(BertConfig(vocab_size=2560, **size)).save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER).save_pretrained(folder)
    return folder


def twin(folder, rows: int):
    """(matrix, four steps of work for each row, configuration) of a body whose arithmetic is next to nothing."""
    from fedfm.models.ragged import Ragged
    from fedfm.training.fit import SiteWork

    config = make_config(
        f"body.name={save_body(folder / 'twin', 12, 6)}", "body.lora-rank=2", 'body.lora-targets=["query","value"]',
        "local.batch-size=2", "engine.dtype=float32",
    )  # fmt: skip
    matrix = ClientMatrix(build_model(config, TEXT), rows)
    draw = np.random.default_rng(0)
    works = []
    for row in range(rows):
        matrix.load(row, start_weights(matrix.model, 0))
        ids = Ragged.of([draw.integers(5, 2000, 16) for _ in range(8)])
        works.append(SiteWork(f"s{row}", Features("text-classification", ids, draw.integers(0, 3, 8)), 0, 1))
    return matrix, works, config


VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "expand", "detach", "unsqueeze", "squeeze", "select", "slice", "reshape",
    "permute", "as_strided", "alias", "empty", "empty_like", "split", "unbind", "_reshape_alias", "lift_fresh",
}  # fmt: skip


def operators_of_a_step(matrix, works, config) -> float:
    """aten operators of one of the four steps of all rows together, with its share of what happens once in a round."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from fedfm.training.fit import fit

    class Count(TorchDispatchMode):
        operators = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.operators += function._schema.name.split("::")[1] not in VIEWS
            return function(*args, **(kwargs or {}))

    with Count() as count:
        fit(matrix, works, config.local)
    return count.operators / 4
