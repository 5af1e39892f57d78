"""Pretrain the built-in body `tiny-pretrained`: `tiny` after masked language modelling of generated text.

    python scripts/build_tiny_body.py            # writes fedfm/models/tiny_body; some five minutes on one core
    python scripts/build_tiny_body.py --check    # exit code 1 if the shipped weights are not those of provenance.json

What a pretrained body is to real text this one is to generated sentences: it has read 24,000 of them, of writers (house
styles, names, towns) that no run meets, and no label. Devlin et al., "BERT", 2019, https://arxiv.org/abs/1810.04805,
without next sentences. Other versions of torch or another machine give other last digits, so the weights are shipped,
as float16, and provenance.json names what made them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from transformers import BertForMaskedLM, PreTrainedTokenizerFast

from fedfm.domains import draws
from fedfm.domains.generated import entities, sentences
from fedfm.models.body import TINY_BODY, TINY_TOKENIZER, tiny_config

STYLES, SENTENCES_PER_STYLE = 150, 80  # of each of the two kinds of text
STEPS, BATCH, RATE, WARM_UP = 2500, 64, 2e-3, 0.1
MASKED, AS_MASK, AS_OTHER = 0.2, 0.8, 0.1  # share of tokens that are asked for; of them: hidden, replaced (else kept)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="train nothing; exit code 1 if the weights are others")
    parser.add_argument("--folder", type=Path, default=TINY_BODY)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    weights, provenance = options.folder / "model.safetensors", options.folder / "provenance.json"
    if options.check:
        said = json.loads(provenance.read_text(encoding="utf-8"))["sha256"]
        same = hashlib.sha256(weights.read_bytes()).hexdigest() == said
        print("" if same else f"{weights}: not what {provenance.name} says; run this script without --check", end="")
        return 0 if same else 1
    options.folder.mkdir(parents=True, exist_ok=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER)
    texts = read_corpus(tokenizer)
    model, loss = pretrain(texts, tokenizer, options.steps)
    save_file({name: value.half().contiguous() for name, value in model.bert.state_dict().items()}, weights)
    found = {
        "text": f"generated: {len(texts)} sentences of fedfm.domains.generated", "steps": options.steps,
        "loss": round(loss, 3), "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "versions": {package: version(package) for package in ("faker", "numpy", "torch", "transformers")},
    }  # fmt: skip
    provenance.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8", newline="\n")
    return 0


def read_corpus(tokenizer: PreTrainedTokenizerFast) -> list[np.ndarray]:
    """Token ids of every sentence, shortest first."""
    rng = draws.generator(0, "pretraining")  # no run draws from this key
    texts: list[list[int]] = []
    for _ in range(STYLES):
        for maker in (entities, sentences):
            recipes = rng.integers(0, len(maker.SHARES), SENTENCES_PER_STYLE)
            inputs = maker.render(recipes, maker.draw_style(rng), rng).inputs
            is_words = maker is entities
            rows = [list(words) for words in inputs] if is_words else list(inputs)
            texts += tokenizer(rows, is_split_into_words=is_words, truncation=True, max_length=64)["input_ids"]
    return [np.array(text) for text in sorted(texts, key=len)]


def pretrain(texts: list[np.ndarray], tokenizer: PreTrainedTokenizerFast, steps: int) -> tuple[BertForMaskedLM, float]:
    """The trained model, and the mean loss of its last hundred steps."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng = draws.generator(0, "pretraining", "batches")
    model = BertForMaskedLM(tiny_config(tokenizer, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=WARM_UP)
    losses = []
    for _ in range(steps):
        first = int(rng.integers(0, len(texts) - BATCH))  # neighbours are of one length
        asked, seen, wanted = hide(texts[first : first + BATCH], tokenizer)
        hidden = model.bert(seen, attention_mask=(wanted != tokenizer.pad_token_id).long()).last_hidden_state
        loss = F.cross_entropy(model.cls(hidden[asked]), wanted[asked])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if len(losses) % 250 == 0:
            print(f"step {len(losses)}: loss {np.mean(losses[-100:]):.3f}", file=sys.stderr, flush=True)
    return model, float(np.mean(losses[-100:]))


def hide(texts: list[np.ndarray], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor, Tensor]:
    """Which tokens are asked for (bool), what the model sees, what stood there; all `[B, S]`."""
    wanted = torch.full((len(texts), max(map(len, texts))), tokenizer.pad_token_id)
    for row, text in enumerate(texts):
        wanted[row, : len(text)] = torch.from_numpy(text)
    special = torch.isin(wanted, torch.tensor(tokenizer.all_special_ids))
    asked = (torch.rand(wanted.shape) < MASKED) & ~special
    part = torch.rand(wanted.shape)
    seen = wanted.masked_fill(asked & (part < AS_MASK), tokenizer.mask_token_id)
    other = torch.randint(len(tokenizer.all_special_ids), len(tokenizer), wanted.shape)
    return asked, torch.where(asked & (part > 1 - AS_OTHER), other, seen), wanted


if __name__ == "__main__":
    sys.exit(main())
