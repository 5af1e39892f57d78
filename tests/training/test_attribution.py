"""Integrated gradients: completeness on all three tasks, and the closed form of a linear model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("captum", reason="the extra explain is not installed")
sys.path.insert(0, str(Path(__file__).parents[1] / "federation"))
from federation_helpers import IMAGES, TEXTS, WORDS, tiny, train_federation

from fedfm.cli import main
from fedfm.domains import load_site
from fedfm.training.attribution import explain_image, explain_text
from fedfm.training.trained import load_model


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    domains = {"medical": IMAGES, "finance": TEXTS, "ner": WORDS}
    config = tiny(tmp_path_factory.mktemp("explain"), "local.epochs=3", **domains)
    return config, train_federation(config)


def test_of_a_text_words_sum_to_the_difference(done):
    config, run = done
    text = load_site(config, "finance", "finance-1").test.inputs[0]
    model = load_model(run.folder.path, "finance")
    (found,) = explain_text(model, text, 64)
    assert found.names == tuple(text.split())
    assert found.target == model.predict([" ".join(text.split())])[0]
    assert found.gap < 0.05
    assert np.abs(found.values).max() > 0


def test_of_a_sentence_every_entity_word_is_explained(done):
    config, run = done
    words = load_site(config, "ner", "ner-1").test.inputs[0]
    model = load_model(run.folder.path, "ner")
    head = model.model.head  # one that finds entities: this body has hardly trained
    outside = model.card.labels.index("O")
    head.bias.data[..., outside] -= 5
    found = explain_text(model, words, 64)
    tags = model.predict([words])[0]
    assert [each.target for each in found] == [tag for tag in tags if tag != "O"]
    assert len(found) > 1
    assert max(each.gap for each in found) < 0.05


def test_of_an_image_pixels_sum_to_the_difference(done):
    config, run = done
    image = load_site(config, "medical", "medical-1").test.inputs[0]
    found = explain_image(load_model(run.folder.path, "medical"), image, 256)
    assert found.values.shape == (image.shape[2], *image.shape[:2])
    assert found.gap < 0.05


def test_a_linear_model_has_its_closed_form(done):
    """F(x) = w x: the attribution of pixel i is w_i x_i (the baseline is zero), whatever the steps."""
    import torch

    config, run = done
    image = load_site(config, "medical", "medical-1").test.inputs[0]
    model = load_model(run.folder.path, "medical")
    count = image.size
    weight = torch.from_numpy(np.random.default_rng(0).standard_normal((len(model.card.labels), count))).float()

    class Linear(torch.nn.Module):
        active, dtype, head = model.model.active, torch.float32, model.model.head

        def forward(self, inputs):
            return inputs["images"].flatten(1) @ weight.T

    found = explain_image(replace(model, model=Linear()), image, 4)
    pixels = image.transpose(2, 0, 1).astype(np.float32) / 255
    target = model.card.labels.index(found.target)
    assert np.allclose(found.values, weight[target].numpy().reshape(pixels.shape) * pixels, atol=1e-4)
    assert found.gap < 1e-4


def test_the_page_stands_alone(done, tmp_path, capsys):
    _, run = done
    out = tmp_path / "why.html"
    words = ["explain", str(run.folder.path), "profit rose in year 3", "-d", "finance", "--out", str(out)]
    assert main(words) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(out)
    html = out.read_text(encoding="utf-8")
    assert "profit</span>" in html
    assert "http" not in html
    table = out.with_suffix(".csv").read_text(encoding="utf-8").splitlines()
    assert [line.split(",")[2] for line in table[1:]] == ["profit", "rose", "in", "year", "3"]
    assert table[0] == "input,class,of,attribution"
    own = run.folder.path / "explanations" / "finance.csv"
    assert own.read_text(encoding="utf-8").splitlines() == table
    report = (run.folder.path / "report.html").read_text(encoding="utf-8")
    for line in table[1:]:
        *_, word, value = line.split(",")
        assert f'title="{float(value):+.4f}">{word}</span>' in report
