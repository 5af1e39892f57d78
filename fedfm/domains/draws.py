"""Random draws over examples: keyed generators, stratified draws, and the splits that a source lacks."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

import numpy as np

from fedfm.domains.examples import Examples

SHARES = {"train": 0.7, "validation": 0.1, "test": 0.2}


def generator(seed: int, *words: str) -> np.random.Generator:
    """A generator of its own for each (seed, words), e.g. `generator(0, "partition", "medical")`."""
    return np.random.default_rng([seed, *(zlib.crc32(word.encode()) for word in words)])


def strata(labels: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """int64 [N]: the class of each example; of a tagged sentence its most frequent entity type, 0 for none.

    Tags are numbered as fedfm's readers do, ("O", "B-a", "I-a", "B-b", ...), so that an odd tag starts an entity of
    type (tag + 1) / 2. The lower type wins a tie.
    """
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype != object:
        return labels.astype(np.int64)
    return np.fromiter((_main_type(np.asarray(tags)) for tags in labels), np.int64, len(labels))


def _main_type(tags: np.ndarray) -> int:
    starts = tags[tags % 2 == 1]
    return int(np.bincount((starts + 1) // 2).argmax()) if starts.size else 0


def apportion(weights: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """`total` as whole numbers in proportion to `weights` (Hamilton's method, equal remainders by lot).

    No part differs from its exact share by one or more.
    """
    quotas = weights / weights.sum() * total
    parts = np.floor(quotas).astype(np.int64)
    order = rng.permutation(len(weights))
    # rounded, so that remainders that are equal on paper are equal here
    by_remainder = order[np.argsort(-np.round(quotas - parts, 9)[order], kind="stable")]
    parts[by_remainder[: total - parts.sum()]] += 1
    return parts


def stratified_draw(classes: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (sorted) of `size` of the examples, each class in proportion."""
    found, counts = np.unique(classes, return_counts=True)
    wanted = apportion(counts.astype(float), size, rng)
    drawn = [
        rng.choice(np.flatnonzero(classes == name), take, replace=False)
        for name, take in zip(found, wanted, strict=True)
        if take
    ]
    return np.sort(np.concatenate(drawn)) if drawn else np.zeros(0, np.int64)


def limit(examples: Examples, size: int, rng: np.random.Generator) -> Examples:
    """A stratified draw of `size` examples that keeps every label (as far as `size` allows); 0 keeps all."""
    if not 0 < size < len(examples):
        return examples
    kept = cover(examples.labels, rng)[:size]
    others = np.setdiff1d(np.arange(len(examples)), kept)
    drawn = others[stratified_draw(strata(examples.labels)[others], size - len(kept), rng)]
    return examples.take(np.sort(np.concatenate([kept, drawn])))


def cut_missing(train: Examples, missing: Sequence[str], rng: np.random.Generator) -> dict[str, Examples]:
    """Stratified splits for the names in `missing`, taken from `train`, and what is left as "train".

    The three shares stay 70 : 10 : 20, e.g. a source that lacks validation gives it 1/8 of train. At least one example
    of every label stays in train, so that no split asks for a label that was never shown.
    """
    classes, whole = strata(train.labels), SHARES["train"] + sum(SHARES[split] for split in missing)
    kept = cover(train.labels, rng)
    free = np.setdiff1d(np.arange(len(train)), kept)
    result = {}
    for split in missing:
        size = min(round(len(train) * SHARES[split] / whole), len(free))
        drawn = stratified_draw(classes[free], size, rng)
        result[split] = train.take(free[drawn])
        free = np.delete(free, drawn)
    return {"train": train.take(np.sort(np.concatenate([kept, free]))), **result}


def cover(labels: np.ndarray | Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Positions of randomly chosen examples that together show every label."""
    seen: set[int] = set()
    chosen = []
    for index in rng.permutation(len(labels)):
        if not seen.issuperset(names := set(_ids(labels[index]))):
            seen |= names
            chosen.append(index)
    return np.array(chosen, np.int64)


def _ids(label: np.ndarray | np.integer) -> Iterable[int]:
    return np.atleast_1d(label).tolist()
