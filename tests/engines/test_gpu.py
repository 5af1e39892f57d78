"""What only a GPU can show: rows, workers and bodies in half precision there. Skipped where there is none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from engine_helpers import small
from safetensors.numpy import load_file

from fedfm import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")
SITES = ("domains.finance.sites=4", "domains.finance.max-examples=32", "engine.device=cuda")


def trained(folder, *more: str) -> dict[str, np.ndarray]:
    done = run(small(folder, *SITES, *more), report=False)
    assert done.info["status"] == "finished"
    return load_file(done.folder / "model" / "weights.safetensors")


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name].astype(np.float64) - other[name]).max()) for name in one)


def test_rows_on_a_gpu_are_sites_one_at_a_time_on_a_cpu(tmp_path):
    alone = trained(tmp_path, "engine.dtype=float64", "engine.device=cpu")
    for rows in (1, 4):
        assert apart(trained(tmp_path, "engine.dtype=float64", f"engine.sites-at-once={rows}"), alone) < 1e-10


def test_two_runs_on_a_gpu_are_the_same_run(tmp_path):
    first, second = (trained(tmp_path, "engine.sites-at-once=4") for _ in range(2))
    assert apart(first, second) == 0


@pytest.mark.slow
def test_two_workers_share_a_gpu_and_give_the_weights_of_one_process(tmp_path):
    more = "engine.name=ray", "engine.workers=2", "engine.gpus-per-worker=0.5"
    assert apart(trained(tmp_path, *more), trained(tmp_path)) == 0


@pytest.mark.parametrize(("name", "near"), [("tf32", 0.05), ("bfloat16", 0.2)])
def test_rounded_arithmetic_trains_to_about_the_same_weights(tmp_path, name, near):
    """Of SGD: Adam's first steps turn rounding into whole steps."""
    start = trained(tmp_path, "local.optimizer=sgd", "local.learning-rate=1e-12", "local.head-learning-rate=1e-12")
    exact, rounded = (trained(tmp_path, "local.optimizer=sgd", f"engine.dtype={d}") for d in ("float32", name))
    assert 0 < apart(rounded, exact) < near * apart(start, exact)
