"""Explained predictions: kept in the run's folder, shown on a page of their own and in the run's report.

    explanations/<domain>/<number>.npz   one prediction: words or pixels, and what each says for or against the class
    explanations/<domain>.csv            the same numbers, a row for each word or place

Words have a background by what they say, an image its heat map beside it.
"""

from __future__ import annotations

import base64
import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from PIL import Image

from fedfm.results.page import page, paragraph

BLUE, RED = "0, 114, 178", "213, 94, 0"  # for, against: told apart with any colour vision, and by sign in the title
HEAT_SIDE = 280  # pixels
COLUMNS = ("input", "class", "of", "attribution")
NOTE = "Blue speaks for the predicted class, orange or red against it. Attribution is no proof of cause."


@dataclass(frozen=True)
class Explained:
    """A prediction and its attributions, by word `[W]`, or of the `image` uint8 [H, W, C] by pixel `[H, W]`.

    number: of the input. target: the predicted class. said: how well the attributions add up, as a sentence.
    """

    number: int
    title: str
    target: str
    said: str
    values: np.ndarray
    words: tuple[str, ...] = ()
    image: np.ndarray | None = None

    def rows(self) -> list[tuple[int, str, str, float]]:
        """Its lines of the CSV."""
        places = self.words or [f"{row},{column}" for row, column in np.ndindex(self.values.shape)]
        return [(self.number, self.target, place, float(v)) for place, v in zip(places, self.values.flat, strict=True)]

    def html(self) -> str:
        """The prediction as words or pictures."""
        return words_html(self.words, self.values) if self.image is None else image_html(self.image, self.values)


def keep_explanations(run: Path, domain: str, explained: Sequence[Explained]) -> None:
    """Write them into the run's folder, in place of those that the domain had."""
    place = run / "explanations" / domain
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    for index, one in enumerate(explained, 1):
        image = {} if one.image is None else {"image": one.image}
        texts = {"title": one.title, "target": one.target, "said": one.said, "words": np.array(one.words, dtype=str)}
        np.savez_compressed(place / f"{index:04d}.npz", number=one.number, values=one.values, **texts, **image)
    write_csv(place.with_name(f"{domain}.csv"), explained)


def load_explanations(run: Path) -> dict[str, list[Explained]]:
    """Domain -> what was explained of it last."""
    found: dict[str, list[Explained]] = {}
    for file in sorted((run / "explanations").glob("*/*.npz")):
        with np.load(file, allow_pickle=False) as read:
            texts = {name: str(read[name]) for name in ("title", "target", "said")}
            words, image = tuple(map(str, read["words"])), read["image"] if "image" in read.files else None
            one = Explained(int(read["number"]), **texts, values=read["values"], words=words, image=image)
        found.setdefault(file.parent.name, []).append(one)
    return found


def write_csv(file: Path, explained: Sequence[Explained]) -> None:
    """A row for each word or place of each prediction."""
    with open(file, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows([COLUMNS, *(row for one in explained for row in one.rows())])


def explanations_html(explained: Sequence[Explained], heading: str = "h3") -> str:
    """One after the other, each under its title."""
    return "".join(f"<{heading}>{escape(f'{e.title} - {e.said}')}</{heading}>\n{e.html()}" for e in explained)


def explanations_page(title: str, explained: Sequence[Explained]) -> str:
    """One file without network or script."""
    lead = "What in each input speaks for its prediction, by integrated gradients (Sundararajan et al. 2017)."
    return page(title, lead, [("predictions", "Predictions", paragraph(NOTE, "note") + explanations_html(explained))])


def words_html(words: Sequence[str], values: np.ndarray) -> str:
    """Words, blue where they speak for the class, orange where they speak against it; the number is in the tooltip."""
    largest = float(np.abs(values).max()) if len(values) else 0.0
    spans = []
    for word, value in zip(words, values, strict=True):
        strength = abs(value) / largest if largest > 0 else 0.0
        colour = f"rgba({BLUE if value > 0 else RED}, {0.65 * strength:.3f})"
        spans.append(f'<span class="word" style="background: {colour}" title="{value:+.4f}">{escape(word)}</span>')
    return f'<p class="words">{" ".join(spans)}</p>\n'


def image_html(image: np.ndarray, values: np.ndarray) -> str:
    """An image, uint8 [H, W, C], and beside it where the class is read from: `values [h, w]`."""
    scale = float(np.abs(values).max()) or 1.0
    table = (colormaps["RdBu"](0.5 + values / (2 * scale))[..., :3] * 255).astype(np.uint8)
    plain = image[..., 0] if image.shape[-1] == 1 else image
    return f"<p>{_picture(plain, 'the image')} {_picture(table, 'blue: for the class, red: against it')}</p>\n"


def _picture(table: np.ndarray, words: str) -> str:
    large = Image.fromarray(table).resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    large.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img width="{HEAT_SIDE}" alt="{escape(words)}" title="{escape(words)}" src="data:image/png;base64,{data}">'
