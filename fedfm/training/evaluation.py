"""Scoring one model on one split: sorted, trimmed batches in; an additive tally out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from fedfm.arrays import Arrays
from fedfm.models.features import IGNORED, Features, collate
from fedfm.models.site_model import SiteModel
from fedfm.profiling import phase
from fedfm.training.metrics import Tally, sentence_counts, tally_classification, tally_tags

BATCH_SIZE = 64


@phase("evaluate")
def evaluate(model: SiteModel, splits: Sequence[Features]) -> list[Scored]:
    """Scores of the model in row 0 of its matrix on each split; words that the maximum length cut off count as "O".

    The splits may be those of many sites: their examples go through the model together.
    """
    labels = model.card.labels
    with_scores = model.card.task == "image-classification"
    found = []
    for features, (logits, losses) in zip(splits, predict(model, splits), strict=True):
        loss_sum = float(losses.sum())
        if model.card.task == "token-classification":
            pairs = zip(logits, features.word_starts, strict=True)
            predicted = [word_tags(row, starts, labels) for row, starts in pairs]
            tally = tally_tags(predicted, features.word_labels, labels, loss_sum)
            found.append(Scored(tally, lambda p=predicted, f=features: sentence_counts(p, f.word_labels, labels)))
        else:
            table = softmax(np.stack(logits) if logits else np.zeros((0, len(labels))))
            truth = np.asarray(features.labels)
            tally = tally_classification(table, truth, loss_sum, with_scores)
            items = {"probabilities": table.astype(np.float32), "labels": truth.astype(np.int32)}
            found.append(Scored(tally, lambda items=items: items))
    return found


class Scored(NamedTuple):
    """`tally`: what may leave a site. `items()`: the same example by example, which may not.

    Of classes `probabilities` float32 [N, C] and `labels` int32 [N]; of tags `spans` int32 [N, types, 3] (true,
    predicted, correct entities of each sentence) and `tokens` int32 [N, 2] (correct, all).
    """

    tally: Tally
    items: Callable[[], Arrays]


@torch.inference_mode()
def predict(model: SiteModel, splits: Sequence[Features]) -> list[tuple[list[np.ndarray], np.ndarray]]:
    """For each split the logits of its examples, `[C]` or `[S, C]`, and their losses `[N]`, in the split's order.

    The examples of all splits go through the model together, in order of length: little of a batch is padding, and
    sites with a few examples each do not cost a batch each.
    """
    model.active.rows = 1
    example = model.head.weight  # what trains has the dtype of the inputs; a frozen body may have half of it
    where = [(split, i) for split, features in enumerate(splits) for i in range(len(features))]
    lengths = np.concatenate([features.lengths() for features in splits]) if where else np.zeros(0, np.int64)
    results = [([np.empty(0)] * len(features), np.zeros(len(features))) for features in splits]
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), BATCH_SIZE):
        numbers = order[start : start + BATCH_SIZE]
        rows = [(splits[where[n][0]], np.array([where[n][1]])) for n in numbers]
        batch = collate(rows, example.device, example.dtype)
        out = model(batch.inputs)
        losses = _example_losses(out, batch.labels).double().cpu().numpy()
        for n, row, loss in zip(numbers, out.cpu().numpy(), losses, strict=True):
            split, i = where[n]
            results[split][0][i] = row[: lengths[n]] if row.ndim == 2 else row
            results[split][1][i] = loss
    return results


def _example_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each example `[B]`; for tokens the mean over those of the sentence that are scored."""
    flat = F.cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none", ignore_index=IGNORED)
    losses = flat.view(labels.shape)
    if losses.dim() == 1:
        return losses
    return losses.sum(dim=1) / (labels != IGNORED).sum(dim=1).clamp_min(1)


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last dimension, float64."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def word_tags(token_logits: np.ndarray, starts: np.ndarray, labels: tuple[str, ...]) -> np.ndarray:
    """Tag of each word, from the token that stands for it: int64 [words]."""
    best = token_logits.argmax(axis=-1)
    return np.where(starts < 0, labels.index("O"), best[np.maximum(starts, 0)]).astype(np.int64)
