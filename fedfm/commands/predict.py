"""`fedfm predict`: labels for images, texts or word sequences that no site has seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedfm.domains.formats.images import decode
from fedfm.errors import DataError, Problem
from fedfm.training.trained import TrainedModel, load_model


def predict_lines(run: Path, domain: str, inputs: Sequence[str], site: str = "") -> Iterator[str]:
    """One line an input. Images: `label<TAB>probability<TAB>file`; texts the same; words: `word/TAG word/TAG ...`.

    An input is an image file, a text, or a file of texts, one a line. Raises UserError.
    """
    model = load_model(run, domain, site)
    if model.card.task == "image-classification":
        yield from _images(model, [Path(name) for name in inputs])
        return
    texts = [text for given in inputs for text in _texts(given)]
    if model.card.task == "token-classification":
        sentences = [tuple(text.split()) for text in texts]
        for words, tags in zip(sentences, model.predict(sentences), strict=True):
            yield " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))
    else:
        yield from _lines(model, texts, texts)


def _lines(model: TrainedModel, inputs, names: Sequence[str]) -> Iterator[str]:
    for row, name in zip(model.probabilities(inputs), names, strict=True):
        best = int(row.argmax())
        yield f"{model.card.labels[best]}\t{row[best]:.3f}\t{name}"


def _texts(given: str) -> list[str]:
    """The lines of a file, or the text itself."""
    try:
        is_file = Path(given).is_file()
    except OSError:  # longer than a file name can be
        is_file = False
    if not is_file:
        return [given]
    try:
        return [line for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text (byte {error.start})", where=given) from None


def _images(model: TrainedModel, files: Sequence[Path]) -> Iterator[str]:
    shape = model.card.image_shape
    assert shape is not None  # an image domain has one
    problems, images = [], []
    for file in files:
        try:
            images.append(fit_image(decode(file.read_bytes()), shape))
        except (OSError, ValueError) as error:
            problems.append(Problem(f"cannot be read as an image: {error}", str(file), "give PNG or JPEG files"))
    if problems:
        raise DataError(problems)
    yield from _lines(model, np.stack(images), [str(file) for file in files])


def fit_image(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An image [h, w] or [h, w, 3] as the model was trained: channels and size of `shape` (C, h, w) -> [h, w, C]."""
    from PIL import Image

    channels, height, width = shape
    picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)
