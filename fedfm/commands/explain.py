"""`fedfm explain`: what in an input speaks for its prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedfm.commands.predict import read_images, read_texts
from fedfm.results.explanations import Explained, explanations_page, keep_explanations, write_csv
from fedfm.results.files import replace_text, require_place
from fedfm.results.run_folder import RunFolder
from fedfm.results.run_report import write_run_report
from fedfm.training.attribution import Attribution, explain_image, explain_text
from fedfm.training.trained import TrainedModel, load_model

TOLERATED_GAP = 0.05
LONGEST_TITLE = 60


def explain(
    run: Path, inputs: Sequence[str], domain: str, site: str, steps: int, target: Path
) -> tuple[list[str], list[str]]:
    """Write `target` (HTML) and, beside it, the numbers as CSV, and show them in the run's own report as well.

    Returns lines to print, and warnings: of a gap in completeness of more than 5 %, which more steps close. Raises
    UserError.
    """
    require_place(target)
    model = load_model(run, domain, site)
    explained, lines, warnings = [], [], []
    for number, title, found, image in _attributions(model, inputs, steps):
        said = f"{found.target}: sum {found.values.sum():+.4f} of {found.difference:+.4f}, gap {found.gap:.2%}"
        values = found.values if image is None else found.values.sum(axis=0)
        explained.append(Explained(number, title, found.target, said, values, found.names, image))
        lines.append(f"{title}\t{said}")
        if found.gap > TOLERATED_GAP:
            mend = f"--steps {4 * steps} mends it"
            warnings.append(f"{title}: the attributions miss the difference by {found.gap:.0%}; {mend}")
    replace_text(target, explanations_page(f"Predictions of {domain}, explained", explained))
    write_csv(target.with_suffix(".csv"), explained)
    keep_explanations(Path(run), domain, explained)
    write_run_report(RunFolder.open(run))
    return lines or ["nothing to explain: no word is part of an entity"], warnings


def _attributions(
    model: TrainedModel, inputs: Sequence[str], steps: int
) -> Iterator[tuple[int, str, Attribution, np.ndarray | None]]:
    """(number of the input, its title, what was found, its image or None)."""
    if model.card.task == "image-classification":
        for number, (file, image) in enumerate(zip(inputs, read_images(inputs, model), strict=True), 1):
            yield number, Path(file).name, explain_image(model, image, steps), image
        return
    for number, text in enumerate(read_texts(inputs, model), 1):
        title = text if len(text) < LONGEST_TITLE else f"{text[: LONGEST_TITLE - 3]}..."
        for found in explain_text(model, text, steps):
            yield number, title, found, None
