"""Arithmetic and the way to a device. What only a GPU can show stands in tests/engines/test_gpu.py."""

from __future__ import annotations

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


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.float32, np.float64, bool])
def test_what_is_moved_stays_what_it_is(dtype):
    table = np.arange(6).reshape(2, 3).astype(dtype)
    moved = move(table, "cpu")
    assert moved.device.type == "cpu" and np.array_equal(moved.numpy(), table) and moved.numpy().dtype == table.dtype


def test_float64_is_asked_of_no_gpu_that_does_not_know_it():
    assert (widest("cpu"), widest("cuda:1"), widest("mps")) == (torch.float64, torch.float64, torch.float32)
