"""What a site holds: labelled examples in three splits, and where they came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fedfm.config import Task


@dataclass(frozen=True)
class Examples:
    """One split of labelled examples.

    | task                 | inputs                        | labels                                              |
    |----------------------|-------------------------------|-----------------------------------------------------|
    | image-classification | uint8 array [N, H, W, C]      | int64 array [N]                                     |
    | text-classification  | N texts                       | int64 array [N]                                     |
    | token-classification | N tuples of words             | N int64 arrays, one tag for each word               |
    """

    task: Task
    inputs: np.ndarray | Sequence[str] | Sequence[tuple[str, ...]]
    labels: np.ndarray | Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Sequence[int] | np.ndarray) -> Examples:
        """The examples at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return Examples(self.task, _take(self.inputs, indices), _take(self.labels, indices))

    def relabel(self, new_ids: np.ndarray) -> Examples:
        """Label `i` becomes `new_ids[i]` (int64 [number of labels])."""
        if isinstance(self.labels, np.ndarray):
            return Examples(self.task, self.inputs, new_ids[self.labels])
        return Examples(self.task, self.inputs, tuple(new_ids[tags] for tags in self.labels))


def _take(items, indices: np.ndarray):
    return items[indices] if isinstance(items, np.ndarray) else tuple(items[i] for i in indices)


@dataclass(frozen=True)
class Dataset:
    """A source, read and checked: three splits over one list of labels.

    `labels` are class names, or IOB2 tags with "O" first. `sha256` is the digest of what was read; `source` says what
    it was ("generated" for generated data); `warnings` are sentences for the data manager.
    """

    task: Task
    labels: tuple[str, ...]
    train: Examples
    validation: Examples
    test: Examples
    source: str
    sha256: str
    warnings: tuple[str, ...] = field(default=())

    def splits(self) -> dict[str, Examples]:
        return {"train": self.train, "validation": self.validation, "test": self.test}
