"""Many runs in one process, and what may lie between a run and its going on: other files, other settings, leftovers."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest
import torch
from engine_helpers import small

from fedfm import load_model, resume, run
from fedfm.engines.running import anchored
from fedfm.errors import ConfigError, ModelError
from fedfm.models import body as body_module
from fedfm.models.body import load_body

TEXTS = ("domains.medical.max-examples=12", "local.epochs=1")


def digest(folder: Path, *more: str) -> str:
    return run(small(folder, *TEXTS, *more), report=False).info["final_weights_sha256"]


def body_folder(place: Path, seed: int) -> None:
    """A folder as `save_pretrained` leaves it, with the weights of a seed, in place of what is there."""
    shutil.rmtree(place, ignore_errors=True)
    body = load_body(small(place.parent, "body.weights=random", f"seed={seed}"))
    body.model.save_pretrained(place)
    body.tokenizer.save_pretrained(place)


def stopped(folder: Path, *more: str, after: int = 1, seen=lambda path: None) -> Path:
    """The folder of a run that the user has stopped once a round was done."""
    paths = []

    def listen(event: dict) -> None:
        paths.extend([folder / "runs" / event["run"]] if event["event"] == "run-started" else [])
        if event["event"] == "round-finished" and event["round"] == after:
            seen(paths[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(small(folder, *TEXTS, *more), listen=listen, report=False)
    return paths[0]


# ---- in one process -------------------------------------------------------------------------------------------------


def test_two_threads_give_what_each_gives_alone(tmp_path):
    """Also the first runs of a process, which draw the body."""
    alone = {seed: digest(tmp_path, f"seed={seed}") for seed in (0, 1)}
    body_module._load.cache_clear()
    found: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda seed=seed: found.setdefault(seed, digest(tmp_path / str(seed), f"seed={seed}")))
        for seed in (0, 1)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == alone


def test_the_users_default_type_of_torch_changes_nothing_and_stays(tmp_path):
    expected = digest(tmp_path)
    body_module._load.cache_clear()
    torch.set_default_dtype(torch.float64)
    try:
        assert digest(tmp_path) == expected
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert digest(tmp_path) == expected


def test_the_threads_and_the_rounding_of_products_that_the_user_has_set_are_there_again_after_a_run(tmp_path):
    threads, cuda, cudnn = torch.get_num_threads(), torch.backends.cuda.matmul, torch.backends.cudnn
    before = cuda.allow_tf32, cudnn.allow_tf32
    try:
        for rounds in (True, False):
            torch.set_num_threads(threads + 1)
            cuda.allow_tf32 = cudnn.allow_tf32 = rounds
            digest(tmp_path)
            assert (torch.get_num_threads(), cuda.allow_tf32, cudnn.allow_tf32) == (threads + 1, rounds, rounds)
    finally:
        torch.set_num_threads(threads)
        cuda.allow_tf32, cudnn.allow_tf32 = before


def test_a_body_whose_files_have_changed_is_another_body(tmp_path):
    place, found = tmp_path / "body", []
    for seed in (1, 2, 1):
        body_folder(place, seed)
        found.append(digest(tmp_path, f"body.name={place}"))
    assert found[0] == found[2] != found[1]


def test_a_folder_that_is_named_like_a_built_in_body_is_not_taken_for_it(tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert anchored(small(tmp_path)).body.name == "tiny"


# ---- before it goes on ----------------------------------------------------------------------------------------------


def test_a_run_goes_on_and_predicts_with_its_own_body_alone(tmp_path):
    place = tmp_path / "body"
    body_folder(place, 1)
    expected = digest(tmp_path, f"body.name={place}")
    folder = stopped(tmp_path, f"body.name={place}")
    body_folder(place, 2)
    with pytest.raises(ModelError, match="not those that the run began with"):
        resume(folder, report=False)
    body_folder(place, 1)
    assert resume(folder, report=False).info["final_weights_sha256"] == expected
    assert load_model(folder, "finance").predict(["profit rose"])
    body_folder(place, 2)
    with pytest.raises(ModelError, match="not those that the run began with"):
        load_model(folder, "finance")


@pytest.mark.parametrize(("old", "new", "key"), [
    ("lora-rank = 8", "lora-rank = 4", "body.lora-rank"), ('dtype = "float32"', 'dtype = "float64"', "engine.dtype"),
    ("batch-size = 4", "batch-size = 8", "local.batch-size"), ('name = "fedavg"', 'name = "fedprox"', "strategy.name"),
])  # fmt: skip
def test_a_run_does_not_go_on_with_another_configuration(tmp_path, old, new, key):
    folder = stopped(tmp_path)
    text = (folder / "config.toml").read_text(encoding="utf-8")
    assert old in text
    (folder / "config.toml").write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=f"config.toml, {key}: the run began with "):
        resume(folder, report=False)
    (folder / "config.toml").write_text(text, encoding="utf-8")
    assert resume(folder, report=False).info["status"] == "finished"


def test_a_run_may_go_on_for_longer_and_elsewhere(tmp_path):
    expected = digest(tmp_path, "rounds=3", "engine.dtype=float64")
    folder = stopped(tmp_path, "engine.dtype=float64")
    text = (folder / "config.toml").read_text(encoding="utf-8")
    text = text.replace("rounds = 2", "rounds = 3", 1).replace("feature-cache = 1024", "feature-cache = 0")
    (folder / "config.toml").write_text(text, encoding="utf-8")
    assert resume(folder, report=False).info["final_weights_sha256"] == expected


def test_what_a_killed_run_has_kept_of_its_texts_is_not_used_again(tmp_path):
    """Their activations may be half written, or those of texts that have been replaced since."""
    layers = "body.layers=2", "body.trainable-layers=1"
    expected = digest(tmp_path, *layers)
    folder = stopped(tmp_path, *layers, seen=lambda path: shutil.copytree(path / "cache", path / "kept"))
    files = [file for file in (folder / "kept").rglob("*") if file.is_file()]
    assert any(file.suffix == ".npy" for file in files)
    for file in files:
        file.write_bytes(file.read_bytes()[:-64])
    (folder / "kept").rename(folder / "cache")
    assert resume(folder, report=False).info["final_weights_sha256"] == expected
    assert not (folder / "cache").exists()
