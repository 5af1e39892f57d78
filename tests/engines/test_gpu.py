"""What only a GPU can show: rows, workers and bodies in half precision there. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import fedfm, only_run, small, write_config
from safetensors.numpy import load_file

from fedfm import run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of CUDA")
SITES = ("domains.finance.sites=4", "domains.finance.max-examples=32", "engine.device=cuda")


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model" / "weights.safetensors")


def trained(folder: Path, *more: str) -> dict[str, np.ndarray]:
    return weights_of(run(small(folder, *SITES, *more), report=False).folder)


def apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    assert one.keys() == other.keys()
    return max(float(np.abs(one[name].astype(np.float64) - other[name]).max()) for name in one)


def test_rows_on_a_gpu_are_sites_one_at_a_time_on_a_cpu(tmp_path):
    alone = trained(tmp_path, "engine.dtype=float64", "engine.device=cpu")
    for rows in (1, 4):
        assert apart(trained(tmp_path, "engine.dtype=float64", f"engine.sites-at-once={rows}"), alone) < 1e-10


def test_two_runs_on_a_gpu_are_the_same_run_and_one_on_the_cpu_between_them_disturbs_neither(tmp_path):
    first = trained(tmp_path, "engine.sites-at-once=4")
    trained(tmp_path, "engine.device=cpu")
    assert apart(first, trained(tmp_path, "engine.sites-at-once=4")) == 0


@pytest.mark.slow
def test_two_workers_share_a_gpu_and_give_the_weights_of_one_process(tmp_path):
    """To rounding, though packs are the same: the kernels that a GPU is given in another process can be others.

    Of Ray in a process of its own, because it leaves open files behind.
    """
    exact = "engine.dtype=float64", "engine.sites-at-once=2"
    alone, other = trained(tmp_path / "local", *exact), tmp_path / "ray"
    other.mkdir()
    more = "engine.name=ray", "engine.workers=2", "engine.gpus-per-worker=0.5"
    done = fedfm("run", write_config(small(other, *SITES, *exact, *more), other))
    assert done.returncode == 0, done.stderr
    assert apart(weights_of(only_run(other)), alone) < 1e-10


@pytest.mark.parametrize(("name", "near"), [("tf32", 0.05), ("bfloat16", 0.2)])
def test_rounded_arithmetic_trains_to_about_the_same_weights(tmp_path, name, near):
    """Of SGD: Adam's first steps turn rounding into whole steps."""
    start = trained(tmp_path, "local.optimizer=sgd", "local.learning-rate=1e-12", "local.head-learning-rate=1e-12")
    exact, rounded = (trained(tmp_path, "local.optimizer=sgd", f"engine.dtype={d}") for d in ("float32", name))
    assert 0 < apart(rounded, exact) < near * apart(start, exact)
