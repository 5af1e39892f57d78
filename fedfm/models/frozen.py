"""What frozen layers make of the data: computed once for each example, and kept for all rounds where there is room.

Below the lowest layer that trains nothing changes from step to step. For texts the activations at that cut are kept:
one vector a text where only the head trains, else the hidden states of each text without its padding. Images have no
such cut, because their adapter trains below the body. Nothing random happens below the cut (dropout is off).

They are computed in batches of equal length, each site's apart, and so they are the same bits whatever is kept, whoever
computes them and in which order: a full disk costs time and no digit. (A forward pass through all layers, with its
texts padded to the longest of a batch, differs from them by about 1e-15 in float64 and 1e-6 in float32.)
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fedfm.config import BodyConfig
from fedfm.models.body import Body
from fedfm.models.features import Features, Frozen, collate
from fedfm.models.ragged import Ragged
from fedfm.models.site_model import SiteModel, mean_over_tokens

FILL_BATCH = 64


def frozen_below(model: SiteModel) -> str:
    """What can be kept of a domain's texts: "pooled", "hidden", or "" where something trains below every layer."""
    if model.card.image_shape is not None or model.cut == 0:
        return ""
    config = model.body.config
    narrow = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size  # then a projection follows
    if narrow and model.above:
        return ""
    return "pooled" if not model.above and model.card.task == "text-classification" else "hidden"


def cache_key(body: Body, settings: BodyConfig, kind: str, cut: int, max_length: int, dtype: str) -> str:
    """Digest of all that the kept activations depend on, besides the texts themselves."""
    parts = {
        "body": body.sha256, "tokenizer": _tokenizer_digest(body.tokenizer), "kind": kind, "cut": cut,
        "layers": settings.layers, "max-length": max_length, "dtype": dtype,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _tokenizer_digest(tokenizer) -> str:
    """Of what it makes of a text, without where it cut the last one: truncation stays set from call to call."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
    if backend is not None:
        parts |= {"truncation": None, "padding": None}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def freeze(model: SiteModel, features: Features, file: Path | None = None, room: int = 0) -> Features:
    """`features` with what lies below the cut; the same features where nothing can be kept.

    It comes from `file` (.npy), which is filled first where it is not there yet. Where the file would be larger than
    `room` bytes, or none is given, or the disk is full, what the system reclaims when nobody reads it any more takes
    its place: a file without a name, or memory. A kill while a file is being filled leaves none.
    """
    kind = frozen_below(model)
    if not kind or not len(features):
        return features
    rows = len(features) if kind == "pooled" else int(features.lengths().sum())
    shape, dtype = (rows, model.body.config.hidden_size), model.head.weight.dtype
    numpy_dtype = np.dtype(str(dtype).removeprefix("torch."))
    if file is not None and not file.exists() and rows * shape[1] * dtype.itemsize <= room:
        with suppress(OSError):  # a full disk
            _fill_file(model, features, file, kind, shape, numpy_dtype)
    if file is not None and file.exists():
        kept = np.load(file, mmap_mode="r")
    else:
        kept = _unnamed(shape, numpy_dtype)
        _fill(kept, model, features, kind)
    if kind == "pooled":
        return replace(features, frozen=Frozen(pooled=kept))
    return replace(features, frozen=Frozen(hidden=Ragged(kept, features.inputs.starts)))


def _fill_file(model: SiteModel, features: Features, file: Path, kind: str, shape: tuple, dtype: np.dtype) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        table = np.lib.format.open_memmap(fresh, "w+", dtype, shape)
        with fresh.open("r+b") as whole:
            _reserve(whole)
        _fill(table, model, features, kind)
        table.flush()
        del table
        fresh.replace(file)
    finally:
        fresh.unlink(missing_ok=True)


def _unnamed(shape: tuple, dtype: np.dtype) -> np.ndarray:
    """A table in a file that nobody else sees, or, where the disk has no room for it, in memory."""
    try:
        with tempfile.TemporaryFile() as unnamed:
            table = np.memmap(unnamed, dtype, "w+", shape=shape)
            _reserve(unnamed)
            return table
    except OSError:
        return np.empty(shape, dtype)


def _reserve(file: IO[bytes]) -> None:
    """Take the file's whole size from the disk now: what is missing when its mapping is written to kills the process.

    Raises OSError where it is not there. (macOS has no such call.)
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


def _fill(table: np.ndarray, model: SiteModel, features: Features, kind: str) -> None:
    starts = features.inputs.starts
    for indices, hidden, mask in _states(model, features):
        if kind == "pooled":
            table[indices] = mean_over_tokens(hidden, mask).cpu().numpy()
            continue
        for i, row in zip(indices, hidden.cpu().numpy(), strict=True):
            table[starts[i] : starts[i + 1]] = row[: starts[i + 1] - starts[i]]


def _states(model: SiteModel, features: Features) -> Iterator[tuple[np.ndarray, Tensor, Tensor | None]]:
    """(indices, states at the cut [B, S, H], mask) of all texts, in batches of equal length: nothing is padded."""
    lengths = features.lengths()
    example = model.head.weight
    for length in np.unique(lengths):
        same = np.flatnonzero(lengths == length)
        for first in range(0, len(same), FILL_BATCH):
            indices = same[first : first + FILL_BATCH]
            batch = collate([(features, indices)], example.device, example.dtype)
            yield indices, states_at_cut(model, batch.inputs).to(example.dtype), batch.inputs.get("attention_mask")


class _Reached(Exception):  # noqa: N818 (not an error: it ends a forward pass early)
    """The first layer above the cut has been called."""


@torch.inference_mode()
def states_at_cut(model: SiteModel, inputs: dict[str, Tensor]) -> Tensor:
    """What the lowest layer that trains is given `[N, S, H]`; where none does, what the body gives."""
    with torch.autocast(model.head.weight.device.type, torch.bfloat16, enabled=model.is_half):
        return _states_at_cut(model, inputs)


def _states_at_cut(model: SiteModel, inputs: dict[str, Tensor]) -> Tensor:
    if model.is_plain:
        return model.below_cut(inputs)
    if not model.above:
        return model.encode(inputs)
    caught: list[Tensor] = []

    def catch(_module, args, kwargs):
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _Reached

    hook = model.above["0"].register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model.encode(inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    return caught[0]
