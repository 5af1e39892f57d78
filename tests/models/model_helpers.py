"""Small models with their rows bound and away from the start, and tiny encoders written to a folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from fedfm.config import RunConfig, load_config
from fedfm.domains.card import DomainCard
from fedfm.models.body import TINY_TOKENIZER
from fedfm.models.site_model import build_model, start_weights
from fedfm.training.matrix import ClientMatrix

TEXT = DomainCard("finance", "text-classification", ("negative", "neutral", "positive"))
TAGS = DomainCard("ner", "token-classification", ("O", "B-ORG", "I-ORG"))


def image_card(channels: int = 3, height: int = 28, width: int = 28) -> DomainCard:
    return DomainCard("medical", "image-classification", ("a", "b"), (channels, height, width))


def make_config(*overrides: str) -> RunConfig:
    return load_config({}, overrides)


def make_bound(config: RunConfig, card: DomainCard, noise: float = 0.05) -> ClientMatrix:
    """The model of a domain, bound to one row, its weights moved off the start by `noise` (B = 0 hides a lot)."""
    matrix = ClientMatrix(build_model(config, card))
    draw = np.random.default_rng(1)
    values = start_weights(matrix.model, config.seed)
    matrix.load(0, {n: (v + noise * draw.standard_normal(v.shape)).astype(v.dtype) for n, v in values.items()})
    return matrix


def token_inputs(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids, padded to the longest."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 400, (length,), generator=draw)
        mask[row, :length] = 1
    return {"input_ids": ids, "attention_mask": mask}


def random_encoders() -> dict[str, tuple[type, object]]:
    """Model class and a small configuration of every family that fedfm names, and some more."""
    import transformers as hf

    size = {"vocab_size": 4096, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    plain = size | {"intermediate_size": 48, "max_position_embeddings": 80, "pad_token_id": 0}
    return {
        "bert": (hf.BertModel, hf.BertConfig(**plain)),
        "roberta": (hf.RobertaModel, hf.RobertaConfig(**{**plain, "pad_token_id": 1}, type_vocab_size=1)),
        "distilbert": (
            hf.DistilBertModel,
            hf.DistilBertConfig(
                vocab_size=4096, dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=80,
            ),
        ),
        "modernbert": (
            hf.ModernBertModel,
            hf.ModernBertConfig(
                **plain, global_attn_every_n_layers=2, local_attention=16, cls_token_id=2, sep_token_id=3,
                bos_token_id=2, eos_token_id=3,
            ),
        ),
        "electra": (hf.ElectraModel, hf.ElectraConfig(**plain, embedding_size=24)),
        "xlm-roberta": (hf.XLMRobertaModel, hf.XLMRobertaConfig(**{**plain, "pad_token_id": 1}, type_vocab_size=1)),
        "mpnet": (hf.MPNetModel, hf.MPNetConfig(**{**plain, "pad_token_id": 1})),
        "deberta-v2": (
            hf.DebertaV2Model,
            hf.DebertaV2Config(
                **plain, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"], type_vocab_size=0,
            ),
        ),
    }  # fmt: skip


def save_encoder(folder: Path, family: str) -> nn.Module:
    """Write a random encoder of a family, with the built-in tokenizer, as `save_pretrained` leaves it."""
    from transformers import PreTrainedTokenizerFast

    kind, config = random_encoders()[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = kind(config)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER).save_pretrained(folder)
    return model.eval()
