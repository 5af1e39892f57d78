"""What may be done to an update on its way: made small, clipped, noised. Pairs of pure functions on named arrays.

`encode(arrays, generator)` gives the arrays that travel, in which every saved byte is really saved; `decode(encoded,
like)` gives back tensors of the names, shapes and dtypes of `like`, which must be those of the update.

    fp16      nearest float16; what is below 3e-8 becomes 0, what is above 65504 infinite
    qsgd      Q(v)_i = ||v|| sign(v_i) xi_i / s,  xi_i = floor(x) + Bernoulli(x - floor(x)),  x = s |v_i| / ||v||
              s = 2^(bits - 1) - 1;  E Q(v) = v,  E ||Q(v) - v||^2 <= min(d / s^2, sqrt(d) / s) ||v||^2
    top-k     the ceil(k d) largest entries by magnitude of the whole update: their places and float32 values
    sign      mean_i |v_i| sign(v_i), a bit an entry; the sign of 0 is +
    clip      v min(1, C / ||v||), one norm over all tensors
    gaussian  v + N(0, sigma^2) at each entry

QSGD: Alistarh, Grubic, Li, Tomioka, Vojnovic, NeurIPS 2017, https://arxiv.org/abs/1610.02132, with one norm a tensor
and levels of fixed width in place of its Elias code. Sign with a scale: Karimireddy, Rebjock, Stich, Jaggi, ICML 2019,
https://arxiv.org/abs/1901.09847. fp16, top-k and sign are biased: use them with `send_with_feedback`, which keeps what
was not sent for the next round (Seide et al. 2014; Stich, Cordonnier, Jaggi 2018, https://arxiv.org/abs/1809.07599):

    u = v + e;    send C(u);    e <- u - C(u)

A site that is not asked for some rounds holds an e that grows old. QSGD is unbiased without it, and with few bits is no
contraction, so that its e could grow without limit: the noise on a tensor of a million normal entries is 2.3 of the
tensor's own norm at 8 bits and 11 at 4, which only a mean over many sites takes away. Clipping and noise alone are no
promise of privacy: what epsilon they give depends on the accounting, and floating-point noise has known weaknesses.

No value that is not finite is hidden: it decodes to one that is not finite, so that screening finds it. A finite one
that the form cannot hold does so too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fedfm.arrays import Arrays, non_finite

Like = Mapping[str, np.ndarray]


class Transform(NamedTuple):
    """A pair of functions. plain: does `encode` give tensors of the same names? feedback: is it biased but near?"""

    encode: Callable[[Arrays, np.random.Generator], Arrays]
    decode: Callable[[Arrays, Like], Arrays]
    plain: bool = False
    feedback: bool = False


def chain(*steps: Transform) -> Transform:
    """One after the other, as clip, gaussian, qsgd. Only the last may change the form of the update."""
    if not steps or not all(step.plain for step in steps[:-1]):
        raise ValueError("of a chain of transforms only the last may change the form of the update")

    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        for step in steps:
            arrays = step.encode(arrays, generator)
        return arrays

    last = steps[-1]
    return Transform(encode, last.decode, last.plain, last.feedback and len(steps) == 1)


def send_with_feedback(
    transform: Transform, arrays: Arrays, error: Arrays, generator: np.random.Generator
) -> tuple[Arrays, Arrays]:
    """What to send of `arrays` + `error`, and the new error, in float64; `error` is empty at first.

    The error is kept as it was where what is sent is not finite: such an update will be left out, and would otherwise
    spoil all that follow.
    """
    wanted = {name: value.astype(np.float64) + error.get(name, 0.0) for name, value in arrays.items()}
    encoded = transform.encode(wanted, generator)
    arrived = transform.decode(encoded, arrays)
    if non_finite(wanted) or non_finite(arrived):
        return encoded, error
    return encoded, {name: wanted[name] - arrived[name] for name in wanted}


def fp16() -> Transform:
    return Transform(
        lambda arrays, generator: {n: _narrow(v, np.float16) for n, v in arrays.items()}, _as_sent, True, True
    )


def clip(limit: float) -> Transform:
    """`limit`: C, of the norm over all tensors jointly."""

    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        length = _length(arrays)
        if not length > limit or not math.isfinite(length):
            return dict(arrays)
        return {n: _narrow(v.astype(np.float64) * (limit / length), v.dtype) for n, v in arrays.items()}

    return Transform(encode, _as_sent, True)


def gaussian(deviation: float) -> Transform:
    """`deviation`: sigma, of each entry. Tensors get their noise in order of name."""

    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        noise = {name: generator.normal(0.0, deviation, arrays[name].shape) for name in sorted(arrays)}
        return {name: _narrow(value + noise[name], value.dtype) for name, value in arrays.items()}

    return Transform(encode, _as_sent, True)


def qsgd(bits: int = 8) -> Transform:
    """`bits` of an entry: 8, 4 or 2, sign included."""
    if bits not in (2, 4, 8):
        raise ValueError(f"qsgd has 8, 4 or 2 bits, got {bits}")
    steps = 2 ** (bits - 1) - 1

    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        sent: Arrays = {}
        for name in sorted(arrays):
            levels, length = _levels(arrays[name].ravel().astype(np.float64), steps, generator)
            sent[f"{name}#levels"], sent[f"{name}#norm"] = pack(levels, bits), length
        return sent

    def decode(encoded: Arrays, like: Like) -> Arrays:
        found = {}
        for name, value in like.items():
            levels = unpack(encoded[f"{name}#levels"], bits, value.size).astype(np.float64) - steps
            found[name] = _narrow(levels * (float(encoded[f"{name}#norm"]) / steps), value.dtype).reshape(value.shape)
        return found

    return Transform(encode, decode)


def _levels(vector: np.ndarray, steps: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Levels from 0 to 2 * steps, drawn, and the norm as float32, rounded up so that no entry is above it."""
    wide = _length({"": vector})
    length = _narrow(np.asarray(wide), np.float32)
    if not math.isfinite(length) or wide == 0:  # NaN times any level is NaN
        return np.full(vector.size, steps, np.uint8), length if wide == 0 else np.float32([np.nan]).reshape(())
    if float(length) < wide:  # as Python floats: numpy would compare in float32
        length = np.nextafter(length, np.float32(np.inf))
    exact = np.abs(vector) * (steps / float(length))
    lower = np.floor(exact)
    drawn = np.minimum(lower + (generator.random(vector.size) < exact - lower), steps)
    return (steps + np.sign(vector) * drawn).astype(np.uint8), np.asarray(length, np.float32)


def pack(codes: np.ndarray, bits: int) -> np.ndarray:
    """Numbers below 2**bits, as uint8, several to a byte, the first in the lowest bits; the last byte is filled up."""
    each = 8 // bits
    padded = np.zeros(-(-codes.size // each) * each, np.uint8)
    padded[: codes.size] = codes
    shifted = padded.reshape(-1, each) << (bits * np.arange(each, dtype=np.uint8))
    return np.bitwise_or.reduce(shifted, axis=1).astype(np.uint8)


def unpack(packed: np.ndarray, bits: int, size: int) -> np.ndarray:
    """The first `size` numbers that `pack` was given."""
    codes = packed[:, None] >> (bits * np.arange(8 // bits, dtype=np.uint8))
    return (codes & (2**bits - 1)).astype(np.uint8).ravel()[:size]


def top_k(share: float = 0.01) -> Transform:
    """`share`: k, of the entries of the whole update; at least one is sent. Places count through tensors by name."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of top-k must be above 0 and at most 1, got {share}")

    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        flat = np.concatenate([np.zeros(0), *(arrays[name].ravel() for name in sorted(arrays))])
        count = min(max(math.ceil(share * flat.size - 1e-6), 1), flat.size)
        sizes = np.where(np.isfinite(flat), np.abs(flat), np.inf)  # NaN first: it must not stay behind unseen
        order = np.argpartition(sizes, flat.size - count) if flat.size else np.zeros(0, np.int64)
        places = np.sort(order[flat.size - count :])
        width = np.uint32 if flat.size <= 2**32 else np.uint64
        return {"#indices": places.astype(width), "#values": _narrow(flat[places], np.float32)}

    def decode(encoded: Arrays, like: Like) -> Arrays:
        flat = np.zeros(sum(value.size for value in like.values()))
        flat[encoded["#indices"]] = encoded["#values"]
        found, start = {}, 0
        for name in sorted(like):
            value = like[name]
            found[name] = flat[start : start + value.size].reshape(value.shape).astype(value.dtype)
            start += value.size
        return found

    return Transform(encode, decode, feedback=True)


def sign() -> Transform:
    def encode(arrays: Arrays, generator: np.random.Generator) -> Arrays:
        sent: Arrays = {}
        for name, value in arrays.items():
            with np.errstate(over="ignore"):
                scale = np.abs(value.astype(np.float64)).sum() / max(value.size, 1)
            sent[f"{name}#signs"] = np.packbits(value.ravel() < 0)
            sent[f"{name}#scale"] = _narrow(np.asarray(scale), np.float32)
        return sent

    def decode(encoded: Arrays, like: Like) -> Arrays:
        found = {}
        for name, value in like.items():
            below = np.unpackbits(encoded[f"{name}#signs"], count=value.size).reshape(value.shape)
            found[name] = _narrow((1.0 - 2.0 * below) * float(encoded[f"{name}#scale"]), value.dtype)
        return found

    return Transform(encode, decode, feedback=True)


TRANSFORMS: dict[str, Callable[..., Transform]] = {
    "fp16": fp16,
    "qsgd": qsgd,
    "top-k": top_k,
    "sign": sign,
    "clip": clip,
    "gaussian": gaussian,
}


def _as_sent(encoded: Arrays, like: Like) -> Arrays:
    return {name: _narrow(encoded[name], value.dtype) for name, value in like.items()}


def _narrow(value: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """In another dtype; what is too large for it becomes infinite, without a warning: screening will see it."""
    with np.errstate(over="ignore"):
        return np.asarray(value).astype(dtype)


def _length(arrays: Like) -> float:
    """Euclidean norm over all tensors, even where squares leave the range of float64; NaN where one is not finite."""
    largest = max((float(np.abs(value).max()) for value in arrays.values() if value.size), default=0.0)
    if non_finite(arrays):
        return math.nan
    if largest == 0:
        return 0.0
    squares = sum(float(np.square(value.astype(np.float64) / largest).sum()) for value in arrays.values())
    return largest * math.sqrt(squares)
