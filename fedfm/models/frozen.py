"""What frozen layers make of the data, computed once and used in all rounds.

Below the lowest layer that trains nothing changes from step to step. For texts the activations at that cut are kept:
one vector a text where only the head trains, else the hidden states of each text without its padding. Images have no
such cut, because their adapter trains below the body. Nothing random happens below the cut (dropout is off).

Training is the same to the bit where the texts of a batch are of equal length, whatever the size of the batch. Beside
a longer text a text's own states depend on the width of the table in the last digits, with or without a cache; what is
kept is computed without padding, so that then about 1e-15 in float64 and 1e-6 in float32 lie between the two.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

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
    config = model.body.config
    narrow = getattr(config, "embedding_size", config.hidden_size) != config.hidden_size  # then a projection follows
    if model.card.image_shape is not None or model.cut == 0 or (narrow and model.above):
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


def freeze(model: SiteModel, features: Features, file: Path, limit_bytes: int) -> Features:
    """`features` with what lies below the cut, from `file` (.npy), which is filled first where it is not there yet.

    The same features where there is nothing to keep, or it would take more than `limit_bytes`. A kill while the file
    is being filled leaves none.
    """
    kind = frozen_below(model)
    if not kind or not len(features):
        return features
    rows = len(features) if kind == "pooled" else int(features.lengths().sum())
    shape, dtype = (rows, model.body.config.hidden_size), model.head.weight.dtype
    if not file.exists():
        if rows * shape[1] * dtype.itemsize > limit_bytes:
            return features
        _fill(model, features, file, kind, shape, str(dtype).removeprefix("torch."))
    kept = np.load(file, mmap_mode="r")
    if kind == "pooled":
        return replace(features, frozen=Frozen(pooled=kept))
    return replace(features, frozen=Frozen(hidden=Ragged(kept, features.inputs.starts)))


def _fill(model: SiteModel, features: Features, file: Path, kind: str, shape: tuple[int, int], dtype: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    table = np.lib.format.open_memmap(fresh, "w+", dtype, shape)
    starts = features.inputs.starts
    for indices, hidden, mask in _states(model, features):
        if kind == "pooled":
            table[indices] = mean_over_tokens(hidden, mask).cpu().numpy()
            continue
        for i, row in zip(indices, hidden.cpu().numpy(), strict=True):
            table[starts[i] : starts[i + 1]] = row[: starts[i + 1] - starts[i]]
    table.flush()
    del table
    fresh.replace(file)


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
