"""What a trained model is asked in Python: a list of texts, of sentences, or images as it was trained on them."""

from __future__ import annotations

import numpy as np
import pytest

from fedfm.domains.card import DomainCard
from fedfm.errors import UserError
from fedfm.training.trained import read_inputs

TEXT = DomainCard("finance", "text-classification", ("a", "b"), None)
TAGS = DomainCard("ner", "token-classification", ("O", "B-X"), None)
GREY = DomainCard("scans", "image-classification", ("a", "b"), (1, 8, 9))
PIXELS = np.zeros((2, 8, 9), np.uint8)


def test_texts_sentences_and_images_in_the_forms_that_people_have_them():
    assert read_inputs(np.array(["one two"]), TEXT) == ("one two",)
    assert read_inputs(["one  two", ["three", "four"]], TAGS) == (("one", "two"), ("three", "four"))
    for images in (PIXELS, PIXELS[..., None], list(PIXELS)):
        assert np.array_equal(read_inputs(images, GREY), PIXELS[..., None])


@pytest.mark.parametrize(("inputs", "card", "sentence"), [
    ("one two", TEXT, "one text was given, where a list of them belongs"),
    ("one two", TAGS, "one text was given, where a list of them belongs"),
    (["one", 2], TEXT, "number 1 is no text: 2"),
    ([["one", None]], TAGS, "number 0 is no text"),
    (PIXELS.astype(np.float32), GREY, r"the images are float32 of .*, the model was trained on uint8 of"),
    (PIXELS[:, :4], GREY, r"uint8 of shape \[2, 4, 9, 1\]"),
    (PIXELS[0, 0], GREY, r"uint8 of shape \[9\]"),
    ([PIXELS[0], PIXELS[0, :4]], GREY, "the images are not of one size"),
])  # fmt: skip
def test_anything_else_is_refused_with_a_sentence(inputs, card, sentence):
    with pytest.raises(UserError, match=sentence):
        read_inputs(inputs, card)
