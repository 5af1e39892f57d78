"""Arithmetic and the way to a device. What only a GPU can show stands in tests/engines/test_gpu.py."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from fedfm.config import load_config
from fedfm.models.body import load_body
from fedfm.models.devices import move, set_products, stored_dtype, widest


@pytest.mark.parametrize("name", ["float32", "float64", "bfloat16", "tf32"])
def test_a_body_is_held_in_the_type_that_is_asked_for(name):
    """TF32 is a way to multiply, no type: the weights are float32."""
    expected = torch.float32 if name == "tf32" else getattr(torch, name)
    body = load_body(load_config({}, [f"engine.dtype={name}", "body.name=tiny"]))
    assert stored_dtype(name) == expected == next(body.model.parameters()).dtype


def test_only_tf32_lets_a_gpu_round_products():
    """Of matrices, which torch multiplies exactly unless told otherwise, and of convolutions, which it does not."""
    for name, rounds in (("tf32", True), ("float32", False), ("tf32", True), ("bfloat16", False)):
        set_products(name)
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is rounds


WAYS = {  # in which a user may have set how GPUs multiply
    "not at all": "",
    "older names": "matmul.allow_tf32, cudnn.allow_tf32 = True, False",
    "a word for all": "torch.set_float32_matmul_precision('high')",
    "newer names": "matmul.fp32_precision = 'tf32'",
    "a newer name for all": "torch.backends.fp32_precision = 'tf32'",
}
SCRIPT = """
import torch
from fedfm.models.devices import set_products, users_settings_kept
matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

def read(get):
    try:
        return get()
    except (AttributeError, RuntimeError) as error:  # of older torch, and where both kinds of names were used
        return type(error).__name__

def seen():
    newer = read(lambda: matmul.fp32_precision), read(lambda: cudnn.conv.fp32_precision)
    return read(lambda: matmul.allow_tf32), read(lambda: cudnn.allow_tf32), *newer

WAY
before = seen()
with users_settings_kept():
    for name, rounds in (("float32", False), ("tf32", True), ("float32", False)):
        set_products(name)
        assert matmul.allow_tf32 is rounds
        assert seen()[2:] in (("AttributeError",) * 2, ("tf32" if rounds else "ieee",) * 2), seen()
assert seen() == before, (before, seen())
"""


@pytest.mark.parametrize("way", WAYS)
def test_however_a_user_has_set_it_a_run_multiplies_as_it_is_told_and_leaves_it_as_it_was(way):
    """In a process of its own: torch does not forget by which names it was set."""
    if "newer" in way and not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("this torch has no such names")
    done = subprocess.run([sys.executable, "-c", SCRIPT.replace("WAY", WAYS[way])], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64, bool])
def test_what_is_moved_stays_what_it_is(dtype):
    table = np.arange(6).reshape(2, 3).astype(dtype)
    moved = move(table, "cpu")
    assert moved.device.type == "cpu" and np.array_equal(moved.numpy(), table) and moved.numpy().dtype == table.dtype


def test_float64_is_asked_of_no_gpu_that_does_not_know_it():
    assert (widest("cpu"), widest("cuda:1"), widest("mps")) == (torch.float64, torch.float64, torch.float32)
