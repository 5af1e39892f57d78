"""`fedfm predict`: labels for images, texts or word sequences that no site has seen."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np

from fedfm.config import DomainConfig
from fedfm.domains.formats.images import decode
from fedfm.domains.formats.unlabelled import read_unlabelled
from fedfm.domains.reading import half_character
from fedfm.errors import DataError, Problem, UserError
from fedfm.training.trained import TrainedModel, load_model, read_cards

SUFFIXES = "txt|csv|tsv|json|jsonl|ndjson|parquet|conll|bio|iob|md|html|pdf|docx|xlsx|png|jpg|jpeg"
FILE_NAME = re.compile(rf"\S+\.({SUFFIXES})|\S*/\S*", re.IGNORECASE)


def predict_lines(run: Path, inputs: Sequence[str], domain: str = "", site: str = "") -> Iterator[str]:
    """One line an input. Images: `label<TAB>probability<TAB>file`; texts the same; sentences: `word/TAG word/TAG ...`.

    An input is an image file, a text, or a file of texts as `read_unlabelled` takes it. `domain` may be left out where
    the run has one, `site` where no part of the model is private. Raises UserError.
    """
    model = load_model(run, domain or _only_domain(run), site)
    if model.card.task == "image-classification":
        images = read_images(inputs, model)
        yield from _labelled(model, images, inputs)
        return
    texts = read_texts(inputs, model)
    if model.card.task == "text-classification":
        yield from _labelled(model, texts, texts)
        return
    sentences = [tuple(text.split()) for text in texts]
    for words, tags in zip(sentences, model.predict(sentences), strict=True):
        yield " ".join(f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


def _only_domain(run: Path) -> str:
    first, *others = read_cards(run)
    if others:
        mend = f"--domain {' | '.join([first, *others])}"
        raise UserError(f"the run has {1 + len(others)} domains, each with a model", where=str(run), mend=mend)
    return first


def _labelled(model: TrainedModel, inputs: Sequence, names: Sequence[str]) -> Iterator[str]:
    for row, name in zip(model.probabilities(inputs), names, strict=True):
        best = int(row.argmax())
        yield f"{model.card.labels[best]}\t{row[best]:.3f}\t{name}"


def read_texts(inputs: Sequence[str], model: TrainedModel) -> list[str]:
    """All texts with single spaces; raises DataError for every input that is no text and no file that can be read."""
    settings, labels = model.config.domains[model.card.domain], model.card.labels
    texts, problems = [], []
    for given in inputs:
        try:
            texts += _texts(given, settings, labels)
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return texts


def _texts(given: str, settings: DomainConfig, labels: Collection[str]) -> list[str]:
    """What a file holds, or the text itself."""
    path = Path(given)
    try:
        is_file, is_folder = path.is_file(), path.is_dir()
    except (OSError, ValueError):  # longer than a file name can be, or with a zero byte
        is_file = is_folder = False
    if half_character(given):
        raise DataError("not UTF-8 text", where=ascii(given), mend="use a terminal that is set to UTF-8")
    if given and is_folder:
        raise DataError("this is a folder", where=given, mend="give its files; a text that is one word: 'word '")
    if not is_file and FILE_NAME.fullmatch(given):
        raise DataError("there is no such file", where=given, mend="a text of one word needs a space: 'word '")
    try:
        texts = read_unlabelled(path, settings, labels) if is_file else [" ".join(given.split())]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=given) from None
    if not any(texts):
        raise DataError("it holds no text", where=given or '""', mend="give a text, or a file with a text in each line")
    return texts


def read_images(files: Sequence[str], model: TrainedModel) -> np.ndarray:
    """uint8 [N, h, w, C] as the model was trained; raises DataError for every file that is no image."""
    shape = model.card.image_shape
    assert shape is not None  # an image domain has one
    problems, images = [], []
    for file in files:
        if file.lower().endswith(".npz"):
            mend = "give PNG or JPEG files; in Python a trained model takes arrays"
            problems.append(Problem("this holds arrays", file, mend))
            continue
        try:
            images.append(fit_image(decode(Path(file).read_bytes()), shape))
        except OSError as error:
            problems.append(Problem(f"cannot be read: {error.strerror}", file, "give PNG or JPEG files"))
        except ValueError as error:
            problems.append(Problem(str(error), file, "give 8-bit PNG or JPEG files"))
    if problems:
        raise DataError(problems)
    return np.stack(images)


def fit_image(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """An image [h, w] or [h, w, 3] as the model was trained: channels and size of `shape` (C, h, w) -> [h, w, C]."""
    from PIL import Image

    channels, height, width = shape
    picture = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    if picture.size != (width, height):
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(picture, np.uint8).reshape(height, width, channels)
