"""The built-in pretrained body: what it is, that it is what its provenance says, and that it has learnt something."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedfm.config import load_config
from fedfm.domains import draws
from fedfm.domains.generated import entities
from fedfm.models.body import TINY_BODY, load_body


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("build_tiny_body")


def body_of(name: str):
    return load_body(load_config({"body": {"name": name}}))


def test_its_weights_are_those_of_its_provenance(script, tmp_path, capsys):
    assert script.main(["--check"]) == 0
    copied = shutil.copytree(TINY_BODY, tmp_path / "body")
    raw = bytearray((copied / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (copied / "model.safetensors").write_bytes(raw)
    assert script.main(["--check", "--folder", str(copied)]) == 1
    assert "provenance.json" in capsys.readouterr().out


def test_it_is_the_tiny_body_with_the_shipped_weights():
    random, trained = body_of("tiny"), body_of("tiny-pretrained")
    shapes = {name: value.shape for name, value in random.model.state_dict().items()}
    assert {name: value.shape for name, value in trained.model.state_dict().items()} == shapes
    shipped = load_file(TINY_BODY / "model.safetensors")
    assert all(torch.equal(value, shipped[name].float()) for name, value in trained.model.state_dict().items())
    assert trained.sha256 != random.sha256
    assert (TINY_BODY / "model.safetensors").stat().st_size < 1_300_000
    assert trained.tokenizer.get_vocab() == random.tokenizer.get_vocab()


@torch.no_grad()
def test_it_knows_what_kind_of_name_a_sentence_is_about_better_than_a_random_body():
    """A linear probe (least squares) of the token of each name, on writers that it has not read."""
    rng = draws.generator(1, "probe")
    sentences = [entities.render(rng.integers(0, 3, 150), entities.draw_style(rng), rng) for _ in range(2)]
    shares = {}
    for name in ("tiny", "tiny-pretrained"):
        (seen, known), (new, asked) = (features_of_names(body_of(name), part) for part in sentences)
        probe = np.linalg.lstsq(seen, np.eye(3)[known], rcond=1e-4)[0]
        shares[name] = float(((new @ probe).argmax(axis=1) == asked).mean())
    assert shares["tiny-pretrained"] > max(0.65, shares["tiny"] + 0.2), shares  # 0.75 and 0.42 when it was made


def features_of_names(body, examples) -> tuple[np.ndarray, np.ndarray]:
    """Hidden state of the first token of each name `[N, H]`, and its type."""
    rows, kinds = [], []
    for words, tags in zip(examples.inputs, examples.labels, strict=True):
        encoded = body.tokenizer([list(words)], is_split_into_words=True, return_tensors="pt")
        hidden = body.model(encoded["input_ids"]).last_hidden_state[0].numpy()
        places = encoded.word_ids(0)
        for word, tag in enumerate(tags):
            if tag and tag % 2:  # B-
                rows.append(hidden[places.index(word)])
                kinds.append(tag // 2)
    return np.array(rows), np.array(kinds)


def test_the_script_trains_and_says_what_it_made(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "STYLES", 2)
    assert script.main(["--folder", str(tmp_path), "--steps", "3"]) == 0
    said = json.loads((tmp_path / "provenance.json").read_text(encoding="utf-8"))
    assert said["text"] == "generated: 320 sentences of fedfm.domains.generated"
    assert said["steps"] == 3 and 6 < said["loss"] < 9  # ln 2500 = 7.8
    assert script.main(["--check", "--folder", str(tmp_path)]) == 0
    assert load_file(tmp_path / "model.safetensors").keys() == load_file(TINY_BODY / "model.safetensors").keys()
