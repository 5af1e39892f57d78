"""three_domains.py times texts that are padded to max-length: that this is the same training, on generated data."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

import fedfm
from fedfm.training import fit

SPEED = Path(__file__).parents[2] / "experiments" / "speed"
CONFIG = {
    "rounds": 2, "engine": {"dtype": "float64"}, "body": {"name": "tiny"}, "evaluation": {"every": 100},
    "local": {"batch-size": 4, "max-length": 64},
    "domains": {
        "news": {"task": "text-classification", "max-examples": 40},
        "names": {"task": "token-classification", "max-examples": 30},
    },
}  # fmt: skip


def test_texts_that_are_padded_on_come_to_the_same_weights(tmp_path, monkeypatch):
    """Float64, two rounds, texts and tags: 1e-10, where training moved the weights by more than 1e-3."""
    monkeypatch.syspath_prepend(str(SPEED))
    three = importlib.import_module("three_domains")
    collate, widths, found = fit.collate, {"trimmed": set(), "padded": set()}, {}

    def watched(way, inner):
        def gathered(*arguments):
            batch = inner(*arguments)
            widths[way] |= {batch.inputs["input_ids"].shape[1]} if "input_ids" in batch.inputs else set()
            return batch

        return gathered

    for way, inner in (("trimmed", collate), ("padded", three.padded(collate))):
        monkeypatch.setattr(fit, "collate", watched(way, inner))
        done = fedfm.run(fedfm.load_config(CONFIG, f"runs.folder={tmp_path / way}"))
        found[way] = load_file(Path(done.folder) / "model" / "weights.safetensors")
    del sys.modules["three_domains"]
    assert widths["padded"] == set(three.MOST_TOKENS.values()) and max(widths["trimmed"]) < 64
    assert found["trimmed"].keys() == found["padded"].keys()
    assert max(np.abs(found["trimmed"][n] - found["padded"][n]).max() for n in found["trimmed"]) < 1e-10
    assert any(np.abs(values).max() > 1e-3 for name, values in found["trimmed"].items() if name.endswith("lora_B"))


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_what_is_padded_to_is_what_the_file_says(task, monkeypatch):
    monkeypatch.syspath_prepend(str(SPEED))
    three = importlib.import_module("three_domains")
    del sys.modules["three_domains"]
    config = fedfm.load_config(SPEED.parent / "three_domains.toml", "data-root=.")
    lengths = {config.local_for(name).max_length for name, domain in config.domains.items() if domain.task == task}
    assert lengths == {three.MOST_TOKENS[task]}
