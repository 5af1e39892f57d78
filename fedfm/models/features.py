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
from fedfm.models.devices import move
from fedfm.models.ragged import Ragged, pad
from fedfm.profiling import phase

IGNORED = -100  # the label of a token that is not scored: a later part of a word, a special token, padding


@dataclass(frozen=True)
class Frozen:
    """Activations at the cut below which nothing trains: `pooled [N, H]` texts, or the `hidden` states of each."""

    pooled: np.ndarray | None = None
    hidden: Ragged | None = None


@dataclass(frozen=True)
class Features:
    """One split of a site, ready for batches.

    Images: `inputs` uint8 [N, C, h, w]; texts and words: the token ids of N texts. `labels` int64 [N], or for token
    classification one label for each token. `word_labels` and `word_starts`: for each sentence the tag of each word
    and the token that stands for it, -1 where the word was cut off. `truncated`: share of texts that lost tokens to the
    maximum length. `frozen`: what the layers that do not train make of each text (models.frozen).
    """

    task: Task
    inputs: np.ndarray | Ragged
    labels: np.ndarray | Ragged
    word_labels: Ragged | None = None
    word_starts: Ragged | None = None
    truncated: float = 0.0
    pad_id: int = 0
    frozen: Frozen | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self) -> np.ndarray:
        """Tokens of each example, int64 [N] (images: 0, they are all alike)."""
        return self.inputs.lengths if isinstance(self.inputs, Ragged) else np.zeros(len(self), np.int64)


@dataclass(frozen=True)
class Batch:
    """K * B examples on the device. `weights`: what each label counts in its site's mean loss, 0 for padding.

    None where all of a site's count the same.
    """

    inputs: dict[str, Tensor]
    labels: Tensor  # [K*B] or [K*B, S]
    weights: Tensor | None  # like labels


def join(parts: Sequence[Features]) -> Features:
    """The examples of several splits as one, in their order. Raises ValueError where there is none."""
    first = parts[0]
    if len(parts) == 1:
        return first
    truncated = sum(part.truncated * len(part) for part in parts) / max(sum(map(len, parts)), 1)
    return Features(
        first.task,
        _joined([part.inputs for part in parts]),
        _joined([part.labels for part in parts]),
        _joined([part.word_labels for part in parts]),
        _joined([part.word_starts for part in parts]),
        truncated,
        first.pad_id,
        first.frozen and Frozen(*(_joined([getattr(p.frozen, n) for p in parts]) for n in ("pooled", "hidden"))),
    )


def _joined(parts: Sequence[np.ndarray | Ragged | None]) -> np.ndarray | Ragged | None:
    if parts[0] is None:
        return None
    if isinstance(parts[0], Ragged):
        lengths = np.concatenate([part.lengths for part in parts])
        return Ragged(np.concatenate([part.values for part in parts]), np.concatenate([[0], np.cumsum(lengths)]))
    return np.concatenate(parts)


@phase("tokenise")
def featurize(examples: Examples, tokenizer, max_length: int) -> Features:
    """Tokenise (or lay out) a split once; it is then cut into batches many times."""
    if examples.task == "image-classification":
        return Features(examples.task, examples.inputs.transpose(0, 3, 1, 2), np.asarray(examples.labels))
    if not len(examples):
        return _none(examples.task)
    split = examples.task == "token-classification"
    texts = [list(words) for words in examples.inputs] if split else list(examples.inputs)
    encoded = tokenizer(texts, truncation=True, max_length=max_length, is_split_into_words=split)
    ids = Ragged.of(encoded["input_ids"])
    too_long = _truncated(encoded, tokenizer, texts, split, max_length)
    pad_id = tokenizer.pad_token_id or 0
    if not split:
        return Features(examples.task, ids, np.asarray(examples.labels), truncated=too_long, pad_id=pad_id)
    pairs = [_align(encoded.word_ids(i), tags) for i, tags in enumerate(examples.labels)]
    labels, starts = (Ragged.of(part) for part in zip(*pairs, strict=True))
    return Features(examples.task, ids, labels, Ragged.of(examples.labels), starts, too_long, pad_id)


def _none(task: Task) -> Features:
    """Of a text split without examples."""
    empty = Ragged.of([])
    if task == "token-classification":
        return Features(task, empty, empty, empty, empty)
    return Features(task, empty, np.zeros(0, np.int64))


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
    sizes = [len(indices) for _, indices in rows]
    size, task = max(sizes), rows[0][0].task
    is_even = min(sizes) == size
    if not is_even:
        rows = [(own, np.concatenate([i, np.repeat(i[:1], size - len(i))])) for own, i in rows]
    is_image = task == "image-classification"
    inputs = _images(rows, sizes, draws, device, dtype) if is_image else _texts(rows, device)
    if task == "token-classification":
        labels, _ = pad([(own.labels, i) for own, i in rows], IGNORED)
    else:
        labels = _one_array([own.labels[i] for own, i in rows])
    held = move(labels, device)
    if is_even and task != "token-classification" and size:
        return Batch(inputs, held, None)
    real = (np.arange(size) < np.array(sizes)[:, None])[:, :, None] & (labels != IGNORED).reshape(len(rows), size, -1)
    flat = real.reshape(len(rows), -1).astype(np.float64)
    weights = (flat / np.maximum(flat.sum(1, keepdims=True), 1)).reshape(labels.shape)
    held_as = np.float64 if dtype == torch.float64 else np.float32  # before it is moved: not every GPU knows float64
    return Batch(inputs, held, move(weights.astype(held_as), device))


def _images(rows: Sequence[tuple[Features, np.ndarray]], sizes: Sequence[int], draws: Sequence, device, dtype):
    pixels = [own.inputs[i] for own, i in rows]
    if len(draws):  # a site draws for its own examples, whoever trains beside it
        drawn = [augment(part[:n], draw) for part, n, draw in zip(pixels, sizes, draws, strict=True)]
        pixels = [np.concatenate([new, part[len(new) :]]) for new, part in zip(drawn, pixels, strict=True)]
    table = np.ascontiguousarray(_one_array(pixels))  # the pixels of a site may stand channels last
    return {"images": move(table, device).to(dtype).div_(255)}


def _one_array(parts: Sequence[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _texts(rows: Sequence[tuple[Features, np.ndarray]], device) -> dict[str, Tensor]:
    """`input_ids [N, S]`, or what frozen layers made of them, and, where there is padding, `attention_mask [N, S]`."""
    if rows[0][0].frozen is None:
        table, real = pad([(own.inputs, i) for own, i in rows], rows[0][0].pad_id)
        inputs = {"input_ids": move(table, device)}
    elif rows[0][0].frozen.pooled is not None:
        return {"pooled": move(np.concatenate([own.frozen.pooled[i] for own, i in rows]), device)}
    else:
        table, real = pad([(own.frozen.hidden, i) for own, i in rows], 0)
        inputs = {"hidden": move(table, device)}
    return inputs if real.all() else inputs | {"attention_mask": move(real, device)}


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
