"""The state of a run after a round, in one file that is replaced as a whole: a kill leaves the old or the new one."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fedfm.arrays import Arrays
from fedfm.errors import RunError
from fedfm.profiling import phase
from fedfm.strategies.base import State


@dataclass(frozen=True)
class Progress:
    """How far a run has come, in plain numbers."""

    round: int = 0
    bytes_down: int = 0
    bytes_up: int = 0
    seconds: float = 0.0
    best_round: int = 0
    best_score: float = -np.inf
    is_unscored: bool = False  # do the scores of these weights come with the next wave?


@dataclass(frozen=True)
class Checkpoint:
    """Weights, the strategy's state, the weights of the best round so far, and the progress.

    `best`: with early stopping, which ends with them; without it the weights themselves.
    `used`: site -> the last round whose update of it was used; None where an older version has not kept it.
    """

    weights: Arrays
    state: State
    best: Arrays
    progress: Progress = field(default_factory=Progress)
    used: Mapping[str, int] | None = field(default_factory=dict)


@phase("write")
def save_checkpoint(file: Path, checkpoint: Checkpoint) -> None:
    """Write to a file beside it, flush to the disk, replace."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays, plain = _split(checkpoint.state)
    tensors = {f"weights:{name}": value for name, value in checkpoint.weights.items()}
    tensors |= {f"state:{name}": value for name, value in arrays.items()}
    if checkpoint.best is not checkpoint.weights:
        tensors |= {f"best:{name}": value for name, value in checkpoint.best.items()}
    header = {"progress": json.dumps(asdict(checkpoint.progress)), "state": json.dumps(plain)}
    header |= {} if checkpoint.used is None else {"used": json.dumps(dict(checkpoint.used))}
    fresh = file.with_suffix(".tmp")
    with fresh.open("wb") as stream:
        stream.write(save({n: np.ascontiguousarray(v) for n, v in tensors.items()}, metadata=header))
        stream.flush()
        os.fsync(stream.fileno())
    fresh.replace(file)


def load_checkpoint(file: Path) -> Checkpoint | None:
    """The checkpoint, None when there is none. Raises RunError for a damaged one."""
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="numpy") as stored:
            header = stored.metadata()
            tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dictionary)
        plain, progress = json.loads(header["state"]), Progress(**json.loads(header["progress"]))
        used = json.loads(header["used"]) if "used" in header else None
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        mend = "run the configuration again; the folder's tables stay readable"
        raise RunError(f"the checkpoint is damaged: {error}", where=str(file), mend=mend) from None
    parts: dict[str, Arrays] = {"weights": {}, "state": {}, "best": {}}
    for name, value in tensors.items():
        part, _, inner = name.partition(":")
        parts[part][inner] = value
    return Checkpoint(parts["weights"], _join(parts["state"], plain), parts["best"] or parts["weights"], progress, used)


def _split(state: State, prefix: str = "") -> tuple[Arrays, dict[str, Any]]:
    """A nested state as flat arrays (keys joined by '>') and what is left, in plain values."""
    arrays, plain = {}, {}
    for key, value in state.items():
        if isinstance(value, dict):
            inner_arrays, inner_plain = _split(value, f"{prefix}{key}>")
            arrays |= inner_arrays
            plain[key] = inner_plain
        elif isinstance(value, np.ndarray):
            arrays[f"{prefix}{key}"] = value
        else:
            plain[key] = value
    return arrays, plain


def _join(arrays: Arrays, plain: dict[str, Any]) -> State:
    state = json.loads(json.dumps(plain))
    for path, value in arrays.items():
        *parents, last = path.split(">")
        place = state
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return state
