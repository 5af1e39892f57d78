"""From raw splits to a Dataset: whole-source checks, label numbers, missing splits, warnings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fedfm.config import Task
from fedfm.domains.checks import (
    check_part,
    check_splits,
    names_in,
    refuse,
    warn_duplicates,
    warn_empty_texts,
    warn_part,
    warn_single_class,
)
from fedfm.domains.draws import SHARES, cut_missing, generator
from fedfm.domains.examples import Dataset, Examples
from fedfm.domains.reading import RawSource, RawSplit, Reading


def assemble(raw: RawSource, task: Task, reading: Reading, seed: int, part: bool, sha256: str | None = None) -> Dataset:
    """The dataset of a source that was read without problems; DataError when the whole cannot be used.

    `part`: it is one site's of a domain that has more.
    """
    source = str(reading.root)
    refuse((check_part if part else check_splits)(raw.splits, source))
    labels = _label_list(raw, task)
    examples = {split: _number(raw.splits[split], task, labels) for split in raw.splits}
    missing = [split for split in SHARES if split not in examples]
    if missing:
        examples |= cut_missing(examples["train"], missing, generator(seed, "cut missing splits"))
    warnings = [
        *reading.warnings,
        *(warn_part(raw.splits) if part else ()),
        *_warn_splits(missing, raw.whole, examples),
        *(() if part else warn_single_class(examples, labels)),  # of a part the other sites may have the rest
        *warn_empty_texts(raw.splits),
        *warn_duplicates({split: examples[split] for split in SHARES}),
    ]
    train, validation, test = (examples[split] for split in SHARES)
    digest = reading.sha256() if sha256 is None else sha256
    return Dataset(task, labels, train, validation, test, source, digest, tuple(warnings))


def _label_list(raw: RawSource, task: Task) -> tuple[str, ...]:
    """The source's own order, or sorted: numbers by value, IOB2 tags by type with "O" first."""
    if raw.label_order is not None:
        return raw.label_order
    names = {name for split in raw.splits.values() for label in split.labels for name in names_in(label)}
    if task == "token-classification":
        return ("O", *(f"{prefix}-{name}" for name in sorted(names) for prefix in "BI"))
    if all(name.isdecimal() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))  # "1" and "01" are two
    return tuple(sorted(names))


def _number(raw: RawSplit, task: Task, labels: Sequence[str]) -> Examples:
    ids = {name: number for number, name in enumerate(labels)}
    inputs = raw.inputs if isinstance(raw.inputs, np.ndarray) else tuple(raw.inputs)
    if task == "token-classification":
        return Examples(task, inputs, tuple(np.array([ids[tag] for tag in tags], np.int64) for tags in raw.labels))
    return Examples(task, inputs, np.array([ids[name] for name in raw.labels], np.int64))


def _warn_splits(missing: Sequence[str], whole: bool, examples: dict[str, Examples]) -> list[str]:
    warnings = [f"the {split} split is empty" for split in SHARES if not len(examples[split])]
    if missing and not whole:
        sizes = " and ".join(f"{len(examples[split])} training examples for {split}" for split in missing)
        warnings.append(f"the source has no {' and no '.join(missing)} split: a seeded stratified draw took {sizes}")
    return warnings
