"""`fedfm explain`: what in an input speaks for its prediction."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedfm.commands.predict import read_images, read_texts
from fedfm.results.attribution_page import attribution_page, image_html, words_html
from fedfm.results.files import replace_text
from fedfm.training.attribution import Attribution, explain_image, explain_text
from fedfm.training.trained import load_model

TOLERATED_GAP = 0.05


def explain(
    run: Path, inputs: Sequence[str], domain: str, site: str, steps: int, target: Path
) -> tuple[list[str], list[str]]:
    """Write `target` (HTML) and, beside it, the numbers as CSV; returns lines to print, and warnings.

    A gap in completeness of more than 5 % is warned of: more steps close it. Raises UserError.
    """
    model = load_model(run, domain, site)
    parts, rows, lines, warnings = [], [], [], []

    def add(number: int, title: str, found: Attribution, html: str) -> None:
        said = f"{found.target}: sum {found.values.sum():+.4f} of {found.difference:+.4f}, gap {found.gap:.2%}"
        parts.append((f"{title} - {said}", html))
        lines.append(f"{title}\t{said}")
        if found.gap > TOLERATED_GAP:
            warnings.append(
                f"{title}: the attributions miss the difference by {found.gap:.0%}; --steps {4 * steps} mends it"
            )
        names = found.names or [f"{r},{c}" for r, c in np.ndindex(found.values.shape[1:])]
        values = found.values if found.names else found.values.sum(axis=0).ravel()
        rows.extend((number, found.target, name, float(value)) for name, value in zip(names, values, strict=True))

    if model.card.task == "image-classification":
        for number, (file, image) in enumerate(zip(inputs, read_images(inputs, model), strict=True), 1):
            found = explain_image(model, image, steps)
            add(number, Path(file).name, found, image_html(image, found.values))
    else:
        for number, text in enumerate(read_texts(inputs), 1):
            for found in explain_text(model, text, steps):
                add(number, text if len(text) < 60 else f"{text[:57]}...", found, words_html(found.names, found.values))
    replace_text(target, attribution_page(f"Predictions of {domain}, explained", parts))
    with open(target.with_suffix(".csv"), "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([("input", "class", "of", "attribution"), *rows])
    return lines or ["nothing to explain: no word is part of an entity"], warnings
