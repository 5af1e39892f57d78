"""The worked example of CONTRIBUTING.md, run as it stands: a strategy is a file and a row of the table."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedfm import run
from fedfm.strategies import STRATEGIES

CONTRIBUTING = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def example(tmp_path, monkeypatch) -> type:
    """The class, from a file of its own, in the table."""
    (code,) = re.findall(r"<!-- worked example -->\n```python\n(.*?)```", CONTRIBUTING, re.DOTALL)
    assert len(code.splitlines()) <= 60
    file = tmp_path / "fedcm.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("fedcm", file)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fedcm", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(STRATEGIES, "fedcm", module.FedCM)
    return module.FedCM


def weights_of(folder, *overrides: str):
    texts = {"task": "text-classification", "max-examples": 24, "sites": 3, "partition": "quantity"}
    data = {
        "rounds": 2, "runs": {"folder": str(folder)}, "body": {"layers": 1}, "engine": {"dtype": "float64"},
        "local": {"batch-size": 4, "max-length": 16}, "domains": {"finance": texts},
    }  # fmt: skip
    return load_file(run(data, *overrides).folder / "model" / "weights.safetensors")


def test_the_worked_example_runs_alone_and_with_others_at_once(example, tmp_path):
    alone = weights_of(tmp_path / "a", "strategy.name=fedcm", "strategy.momentum=0.3")
    together = weights_of(tmp_path / "b", "strategy.name=fedcm", "strategy.momentum=0.3", "engine.sites-at-once=3")
    plain, none = weights_of(tmp_path / "c"), weights_of(tmp_path / "d", "strategy.name=fedcm", "strategy.momentum=0.0")
    for name, value in alone.items():
        np.testing.assert_allclose(together[name], value, rtol=0, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(none[name], plain[name], rtol=0, atol=1e-12, err_msg=name)
    assert any(np.abs(alone[name] - plain[name]).max() > 1e-4 for name in plain)
