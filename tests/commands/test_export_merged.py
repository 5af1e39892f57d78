"""Products that a strategy has merged into the frozen weights, in a type that numpy does not have."""

from __future__ import annotations

import torch
from command_helpers import make_run
from safetensors.torch import load_file

from fedfm.commands.export import export
from fedfm.training.trained import load_model


def test_merged_weights_of_a_bfloat16_body_are_exported_as_they_predict(tmp_path):
    run = make_run(tmp_path, "strategy.name=flora", "engine.dtype=bfloat16")
    stored = load_file(export(run, tmp_path / "export") / "body" / "model.safetensors")
    merged = load_model(run, "finance").model.body.encoder.layer[0].attention.self.query.merged
    assert merged.dtype == torch.bfloat16
    assert torch.equal(stored["encoder.layer.0.attention.self.query.weight"], merged)
