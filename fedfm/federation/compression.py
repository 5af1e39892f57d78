"""A site's change on its way to the server, as [update] has it: clipped, noised, made small, and read again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from fedfm.arrays import Arrays
from fedfm.config import RunConfig
from fedfm.config.update import UpdateConfig
from fedfm.strategies.transforms import Transform, chain, clip, fp16, gaussian, qsgd, send_with_feedback, sign, top_k

if TYPE_CHECKING:
    from torch import Tensor

    from fedfm.training.matrix import ClientMatrix

ENCODED = "encoded"  # under this word the tensors of an update stand that must be decoded


@lru_cache(maxsize=16)
def transform_of(settings: UpdateConfig) -> Transform | None:
    """What [update] does to a change; None where it does nothing."""
    smaller = {
        "none": None, "fp16": fp16, "qsgd8": lambda: qsgd(8), "qsgd4": lambda: qsgd(4), "qsgd2": lambda: qsgd(2),
        "top-k": lambda: top_k(settings.top_k), "sign": sign,
    }[settings.compress]  # fmt: skip
    steps = [clip(settings.clip)] if settings.clip else []
    steps += [gaussian(settings.noise)] if settings.noise else []
    steps += [smaller()] if smaller else []
    return chain(*steps) if steps else None


def keeps_error(settings: UpdateConfig) -> bool:
    """Does a site keep what it did not send?"""
    transform = transform_of(settings)
    return bool(transform and transform.feedback and settings.error_feedback)


def compress(
    config: RunConfig, round: int, sites: Sequence[str], matrix: ClientMatrix, names: Mapping[str, str],
    change: Tensor, error: Tensor | None, is_real: bool = False,
) -> list[Arrays]:  # fmt: skip
    """What each site sends of its row of `change [k, P]`, which becomes what the server will read of it.

    names: in the model -> in the message, of the tensors that are sent. error `[k, P]`: what was not sent so far.
    is_real: a site across machines, whose noise nobody else may know.
    """
    transform, sent = transform_of(config.update), []
    for row, site in enumerate(sites):
        draw = _generator(config, round, site, is_real)
        arrays = _named(matrix, change[row], names)
        if error is None:
            encoded = transform.encode(arrays, draw)
        else:
            before = matrix.unflatten(error[row].cpu().numpy())  # also of what waits for a round that shares it
            own = {full: before[name] for name, full in names.items()}
            encoded, left = send_with_feedback(transform, arrays, own, draw)
            error[row] = matrix.flatten(before | {name: left[full] for name, full in names.items() if full in left})
        arrived = transform.decode(encoded, arrays)
        change[row] = matrix.flatten({name: arrived[full] for name, full in names.items()})
        sent.append(encoded)
    return sent


def _generator(config: RunConfig, round: int, site: str, is_real: bool) -> np.random.Generator:
    """Keyed by the run's seed; noise of a real site comes from its system's entropy, each time anew: whoever knows the
    seed could take it off again, and of two updates with the same noise the difference has none."""
    if is_real and config.update.noise:
        return np.random.default_rng()
    return np.random.default_rng([config.seed, round, *f"update/{site}".encode()])


def decode(config: RunConfig, encoded: Arrays, like: Arrays) -> Arrays:
    """The change that a site's `encoded` tensors stand for. Raises KeyError, ValueError for what cannot be read."""
    transform = transform_of(config.update)
    if transform is None:
        raise ValueError("its update is compressed, but [update] says nothing of it")
    return transform.decode(encoded, like)


def _named(matrix: ClientMatrix, row: Tensor, names: Mapping[str, str]) -> Arrays:
    values = matrix.unflatten(row.cpu().numpy())
    return {full: values[name] for name, full in names.items()}
