"""One file, replaced as a whole: the old state or the new one, never half of either."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedfm.arrays import sha256
from fedfm.errors import RunError
from fedfm.federation import checkpoint as module
from fedfm.federation.checkpoint import Checkpoint, Progress, load_checkpoint, save_checkpoint

WEIGHTS = {"shared/a": np.float32([[1, 2], [3, 4]]), "finance/head": np.float64([0.1]), "ner/tags": np.int64([7])}


def checkpoint(number: int = 3, **state) -> Checkpoint:
    weights = {name: value + number for name, value in WEIGHTS.items()}
    return Checkpoint(weights, state, weights, Progress(round=number, best_round=number, best_score=0.5))


def test_weights_state_and_progress_come_back_as_they_were(tmp_path):
    state = {
        "step": 4,
        "moments": {"first": {"shared/a": np.float64([1.5, -0.0])}, "second": {"shared/a": np.float32([2.5])}},
        "history": [0.1, 0.25],
        "empty": {},
    }
    progress = Progress(2, 10, 20, 1.25, 1, 0.1 + 0.2)
    best = {name: value * 0 for name, value in WEIGHTS.items()}
    save_checkpoint(tmp_path / "deep" / "state.safetensors", Checkpoint(WEIGHTS, state, best, progress))
    loaded = load_checkpoint(tmp_path / "deep" / "state.safetensors")
    assert loaded is not None
    assert sha256(loaded.weights) == sha256(WEIGHTS)
    assert sha256(loaded.best) == sha256(best)
    assert loaded.progress == progress
    assert loaded.state.keys() == state.keys()
    assert (loaded.state["step"], loaded.state["history"], loaded.state["empty"]) == (4, [0.1, 0.25], {})
    for moment in ("first", "second"):
        assert sha256(loaded.state["moments"][moment]) == sha256(state["moments"][moment])


def test_a_run_that_has_no_score_yet_comes_back_with_none(tmp_path):
    save_checkpoint(tmp_path / "s", Checkpoint({}, {}, {}))
    loaded = load_checkpoint(tmp_path / "s")
    assert loaded is not None
    assert loaded.progress == Progress(best_score=-np.inf)


def test_arrays_that_are_views_are_saved_by_value(tmp_path):
    """A transposed or strided array has another memory than its values; what is read back has the values."""
    weights = {"shared/t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "shared/s": np.arange(8.0)[::2]}
    save_checkpoint(tmp_path / "s", Checkpoint(weights, {}, weights))
    loaded = load_checkpoint(tmp_path / "s")
    assert loaded is not None
    for name, value in weights.items():
        assert np.array_equal(loaded.weights[name], value)


def test_there_is_none_before_the_first(tmp_path):
    assert load_checkpoint(tmp_path / "state.safetensors") is None


@pytest.mark.parametrize("moment", ["flush", "replace"])
def test_a_crash_before_the_replacement_leaves_the_old_one(tmp_path, monkeypatch, moment):
    file = tmp_path / "state.safetensors"
    save_checkpoint(file, checkpoint(1))

    def crash(*args):
        raise KeyboardInterrupt

    if moment == "flush":
        monkeypatch.setattr(module.os, "fsync", crash)
    else:
        monkeypatch.setattr(Path, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(file, checkpoint(2))
    monkeypatch.undo()
    loaded = load_checkpoint(file)
    assert loaded is not None
    assert loaded.progress.round == 1
    save_checkpoint(file, checkpoint(2))  # what the crash left behind is in nobody's way
    loaded = load_checkpoint(file)
    assert loaded is not None
    assert loaded.progress.round == 2
    assert sha256(loaded.weights) == sha256(checkpoint(2).weights)


@pytest.mark.parametrize("damage", ["cut short", "empty", "overwritten"])
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    file = tmp_path / "state.safetensors"
    save_checkpoint(file, checkpoint())
    content = file.read_bytes()
    file.write_bytes({"cut short": content[: len(content) - 9], "empty": b"", "overwritten": b"\xff" * 400}[damage])
    with pytest.raises(RunError) as caught:
        load_checkpoint(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: the checkpoint is damaged: ")
    assert "mend: run the configuration again" in message
    assert caught.value.exit_code == 1


def test_a_foreign_safetensors_file_is_refused_too(tmp_path):
    from safetensors.numpy import save_file

    save_file({"weights": np.zeros(3)}, tmp_path / "state.safetensors")
    with pytest.raises(RunError, match="the checkpoint is damaged"):
        load_checkpoint(tmp_path / "state.safetensors")
