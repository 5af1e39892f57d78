"""The device that work is done on: what `engine.device` means on this machine, or why it cannot be had."""

from __future__ import annotations

import torch

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
