"""Examples to tensors: tokenised once, padded to the batch and no further.

Shape letters: K sites at once, B examples of a site (the largest batch among them), S tokens of the longest text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedfm.config import Task
from fedfm.domains.examples import Examples

IGNORED = -100  # the label of a token that is not scored: a later part of a word, a special token, padding


@dataclass(frozen=True)
class Features:
    """One split of a site, ready for batches.

    Images: `inputs` uint8 [N, C, h, w]; texts and words: N int64 arrays of token ids. `labels` int64 [N], or for
    token classification N int64 arrays, one label for each token. `word_labels` and `word_starts`: for each sentence
    the tag of each word and the token that stands for it, -1 where the word was cut off. `truncated`: share of texts
    that lost tokens to the maximum length.
    """

    task: Task
    inputs: np.ndarray | Sequence[np.ndarray]
    labels: np.ndarray | Sequence[np.ndarray]
    word_labels: Sequence[np.ndarray] = ()
    word_starts: Sequence[np.ndarray] = ()
    truncated: float = 0.0
    pad_id: int = 0

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N] (images: 0, they are all alike)."""
        if self.task == "image-classification":
            return np.zeros(len(self), np.int64)
        return np.array([len(ids) for ids in self.inputs], np.int64)


@dataclass(frozen=True)
class Batch:
    """K * B examples on the device. `weights`: what each label counts in its site's mean loss, 0 for padding."""

    inputs: dict[str, Tensor]
    labels: Tensor  # [K*B] or [K*B, S]
    weights: Tensor  # like labels


def featurize(examples: Examples, tokenizer, max_length: int) -> Features:
    """Tokenise (or lay out) a split once; it is then cut into batches many times."""
    if examples.task == "image-classification":
        return Features(examples.task, examples.inputs.transpose(0, 3, 1, 2), np.asarray(examples.labels))
    if not len(examples):
        return Features(examples.task, (), np.zeros(0, np.int64))
    split = examples.task == "token-classification"
    texts = [list(words) for words in examples.inputs] if split else list(examples.inputs)
    encoded = tokenizer(texts, truncation=True, max_length=max_length, is_split_into_words=split)
    ids = [np.asarray(row, np.int64) for row in encoded["input_ids"]]
    too_long = _truncated(encoded, tokenizer, texts, split, max_length)
    pad_id = tokenizer.pad_token_id or 0
    if not split:
        return Features(examples.task, ids, np.asarray(examples.labels), truncated=too_long, pad_id=pad_id)
    pairs = [_align(encoded.word_ids(i), tags) for i, tags in enumerate(examples.labels)]
    labels, starts = zip(*pairs, strict=True)
    return Features(examples.task, ids, labels, examples.labels, starts, too_long, pad_id)


def _truncated(encoded, tokenizer, texts: list, split: bool, max_length: int) -> float:
    """Share of texts that lost tokens. Only those that came out at the maximum need a second look."""
    full = [i for i, row in enumerate(encoded["input_ids"]) if len(row) >= max_length]
    if not full:
        return 0.0
    again = tokenizer([texts[i] for i in full], is_split_into_words=split, verbose=False)["input_ids"]
    return sum(len(row) > max_length for row in again) / len(texts)


def _align(word_ids: Sequence[int | None], tags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels by token (the first token of a word carries its tag) and, for each word, that token."""
    labels = np.full(len(word_ids), IGNORED, np.int64)
    starts = np.full(len(tags), -1, np.int64)
    for token, word in enumerate(word_ids):
        if word is not None and starts[word] < 0:
            starts[word] = token
            labels[token] = tags[word]
    return labels, starts


def collate(
    rows: Sequence[tuple[Features, np.ndarray]], device: str, dtype: torch.dtype, draws: Sequence = ()
) -> Batch:
    """One batch of K sites: row k is (its features, indices of its examples).

    A site with fewer examples than the largest is filled up with copies of weight 0. `draws[k]`, where given, is the
    generator of the site's image augmentation.
    """
    size = max(len(indices) for _, indices in rows)
    task = rows[0][0].task
    padded = [np.concatenate([i, np.repeat(i[:1], size - len(i))]) for _, i in rows]
    real = [np.arange(size) < len(i) for _, i in rows]
    if task == "image-classification":
        pixels = [features.inputs[indices] for features, indices in rows]
        if len(draws):  # before filling up: a site draws for its own examples, whoever trains beside it
            pixels = [augment(own, draw) for own, draw in zip(pixels, draws, strict=True)]
        filled = [np.concatenate([own, np.repeat(own[:1], size - len(own), axis=0)]) for own in pixels]
        inputs = {"images": torch.from_numpy(np.concatenate(filled)).to(device).to(dtype) / 255}
    else:
        inputs = _pad_texts(
            [f.inputs[j] for (f, _), i in zip(rows, padded, strict=True) for j in i], rows[0][0].pad_id, device
        )
    if task == "token-classification":
        labels = _pad([f.labels[j] for (f, _), i in zip(rows, padded, strict=True) for j in i], IGNORED)
        scored = (labels != IGNORED).reshape(len(rows), size, -1) & np.stack(real)[:, :, None]
    else:
        labels = np.concatenate([f.labels[i] for (f, _), i in zip(rows, padded, strict=True)])
        scored = np.stack(real)
    flat = scored.reshape(len(rows), -1).astype(np.float64)
    weights = (flat / np.maximum(flat.sum(1, keepdims=True), 1)).reshape(labels.shape)
    return Batch(inputs, torch.from_numpy(labels).to(device), torch.from_numpy(weights).to(device).to(dtype))


def _pad(rows: Sequence[np.ndarray], value: int) -> np.ndarray:
    table = np.full((len(rows), max(len(row) for row in rows)), value, np.int64)
    for i, row in enumerate(rows):
        table[i, : len(row)] = row
    return table


def _pad_texts(ids: Sequence[np.ndarray], pad_id: int, device: str) -> dict[str, Tensor]:
    mask = _pad([np.ones(len(row), np.int64) for row in ids], 0)
    return {
        "input_ids": torch.from_numpy(_pad(ids, pad_id)).to(device),
        "attention_mask": torch.from_numpy(mask).to(device),
    }


def augment(images: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Random horizontal flip and a shift by up to a sixteenth of the size, edges repeated: uint8 [N, C, h, w]."""
    count, _, height, width = images.shape
    flip = draw.random(count) < 0.5
    reach = (max(1, height // 16), max(1, width // 16))
    down, right = (draw.integers(-r, r + 1, size=(count, 1)) for r in reach)
    rows = np.clip(np.arange(height) + down, 0, height - 1)
    columns = np.clip(np.arange(width) + right, 0, width - 1)
    columns = np.where(flip[:, None], columns[:, ::-1], columns)
    number = np.arange(count)[:, None, None]
    return images.transpose(0, 2, 3, 1)[number, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)
