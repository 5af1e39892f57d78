"""The device that work is done on, what `engine.device` means on this machine; its arithmetic, and the way to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedfm.errors import ConfigError


def pick_device(name: str) -> str:
    """A device of torch for "auto" (a GPU of CUDA where there is one), "cpu", "cuda", "cuda:1" or "mps".

    Raises ConfigError where this machine has none such.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if missing := _why_not(name):
        mend = 'engine.device = "auto" takes what is there'
        raise ConfigError(f'"{name}" cannot be had on this machine: {missing}', where="engine.device", mend=mend)
    return name


def _why_not(name: str) -> str:
    kind, _, number = name.partition(":")
    if kind == "mps" and not torch.backends.mps.is_available():
        return "torch finds no GPU of Apple"
    if kind != "cuda":
        return ""
    if not torch.cuda.is_available():
        return "torch finds no GPU of CUDA" if torch.backends.cuda.is_built() else "this torch is built without CUDA"
    count = torch.cuda.device_count()
    return f"its GPUs are 0 to {count - 1}" if int(number or 0) >= count else ""


def stored_dtype(name: str) -> torch.dtype:
    """The type of torch in which a body's weights are held where engine.dtype is `name`."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


def widest(device: str | torch.device) -> torch.dtype:
    """The type of torch with most digits on `device`: Apple's GPUs know no float64."""
    return torch.float32 if torch.device(device).type == "mps" else torch.float64


def set_products(name: str) -> None:
    """How this process multiplies float32 on a GPU, where engine.dtype is `name`: exactly, or, with "tf32", factors
    rounded to ten bits of mantissa, which matrix units take.

    Convolutions too: torch would round those unasked, and K rows would differ from K sites by more than rounding.
    """
    matmul, cudnn, rounds = torch.backends.cuda.matmul, torch.backends.cudnn, name == "tf32"
    matmul.allow_tf32 = cudnn.allow_tf32 = rounds
    if hasattr(matmul, "fp32_precision"):  # what a user has set by torch's newer names outlasts the older ones
        matmul.fp32_precision = cudnn.conv.fp32_precision = "tf32" if rounds else "ieee"


@contextmanager
def float32_by_default() -> Iterator[None]:
    """Tensors of no named type are float32 within, whatever the user's torch takes; draws depend on it."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def users_settings_kept() -> Iterator[None]:
    """Afterwards torch is set as the user had it: the type by default, the threads, how GPUs multiply.

    Within, tensors of no named type are float32; the rest is set by every piece of work, as its run asks for it.
    """
    threads, products = torch.get_num_threads(), _products()
    try:
        with float32_by_default():
            yield
    finally:
        torch.set_num_threads(threads)
        for place, name, value in products:
            setattr(place, name, value)


def _products() -> list[tuple[Any, str, bool | str]]:
    """What `set_products` sets, as it is now: (where, name, value), in the order in which to set it again."""
    matmul, cudnn, found = torch.backends.cuda.matmul, torch.backends.cudnn, []
    newer = [(matmul, "fp32_precision"), (getattr(cudnn, "conv", None), "fp32_precision")]
    for place, name in [(matmul, "allow_tf32"), (cudnn, "allow_tf32"), *newer]:
        # older torch has no newer names, and newer torch reads no older one that was not the last to be set
        with suppress(AttributeError, RuntimeError):
            found.append((place, name, getattr(place, name)))
    return found


def move(table: np.ndarray, device: str | torch.device) -> Tensor:
    """`table` as a tensor on `device`.

    To a GPU from pinned memory, which needs no wait: a copy from any other would first let the GPU end all that it has
    been given, and then leave it idle until the next step's kernels are launched.
    """
    held, kind = torch.from_numpy(table), torch.device(device).type
    if kind != "cuda":
        return held if kind == "cpu" else held.to(device)
    return held.pin_memory().to(device, non_blocking=True)
