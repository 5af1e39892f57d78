"""Scoring one model on one split: sorted, trimmed batches in; an additive tally out."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from fedfm.models.features import IGNORED, Features, collate
from fedfm.models.site_model import SiteModel
from fedfm.training.metrics import Tally, tally_classification, tally_tags

BATCH_SIZE = 64


def evaluate(model: SiteModel, features: Features) -> Tally:
    """Tally of the model in row 0 of its matrix on one split; words that the maximum length cut off count as "O"."""
    logits, loss_sum = predict(model, features)
    labels = model.card.labels
    if model.card.task == "token-classification":
        predicted = [word_tags(row, starts, labels) for row, starts in zip(logits, features.word_starts, strict=True)]
        return tally_tags(predicted, features.word_labels, labels, loss_sum)
    table = np.stack(logits) if logits else np.zeros((0, len(labels)))
    with_scores = model.card.task == "image-classification"
    return tally_classification(softmax(table), np.asarray(features.labels), loss_sum, with_scores)


@torch.inference_mode()
def predict(model: SiteModel, features: Features) -> tuple[list[np.ndarray], float]:
    """Logits of each example, `[C]` or `[S, C]`, in the order of `features`, and the sum of the examples' losses.

    Examples go through the model in order of length, so that little of a batch is padding.
    """
    example = next(model.body.parameters())
    model.active.rows = 1
    lengths = features.lengths()
    order = np.argsort(lengths, kind="stable")
    logits: list[np.ndarray] = [np.empty(0)] * len(features)
    loss_sum = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(order), BATCH_SIZE):
        indices = order[start : start + BATCH_SIZE]
        batch = collate([(features, indices)], example.device, example.dtype)
        out = model(batch.inputs)
        loss_sum += _example_losses(out, batch.labels).double().sum().cpu()
        for i, row in zip(indices, out.cpu().numpy(), strict=True):
            logits[i] = row[: lengths[i]] if row.ndim == 2 else row
    return logits, float(loss_sum)


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
