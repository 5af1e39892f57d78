"""Features on disk: what a process cannot hold of its sites' tokenised texts is written once and read again."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from fedfm.config import Task
from fedfm.models.features import Features
from fedfm.models.ragged import Ragged

PARTS = ("inputs", "labels", "word_labels", "word_starts")


def save_features(file: Path, features: Features) -> None:
    """Write all but `frozen`, which has a file of its own; a kill leaves the whole file or none."""
    arrays: dict[str, np.ndarray] = {"truncated": np.array(features.truncated), "pad_id": np.array(features.pad_id)}
    for name in PARTS:
        part = getattr(features, name)
        if isinstance(part, Ragged):
            arrays |= {f"{name}.values": part.values, f"{name}.starts": part.starts}
        elif part is not None:
            arrays[name] = part
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with fresh.open("wb") as stream:
            np.savez(stream, **arrays)
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def load_features(file: Path, task: Task) -> Features:
    """What `save_features` has written."""
    with np.load(file, allow_pickle=False) as stored:
        parts: dict[str, np.ndarray | Ragged] = {name: stored[name] for name in PARTS if name in stored}
        ragged = [name for name in PARTS if f"{name}.values" in stored]
        parts |= {name: Ragged(stored[f"{name}.values"], stored[f"{name}.starts"]) for name in ragged}
        return Features(task, **parts, truncated=float(stored["truncated"]), pad_id=int(stored["pad_id"]))
