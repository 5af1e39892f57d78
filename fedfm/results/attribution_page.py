"""What `fedfm explain` shows: words with a background by what they say, an image beside its heat map."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
from matplotlib import colormaps
from PIL import Image

from fedfm.results.page import page, paragraph

BLUE, RED = "0, 114, 178", "213, 94, 0"  # for, against: told apart with any colour vision, and by sign in the title
HEAT_SIDE = 280  # pixels


def words_html(words: Sequence[str], values: np.ndarray) -> str:
    """Words, blue where they speak for the class, orange where they speak against it; the number is in the tooltip."""
    largest = float(np.abs(values).max()) if len(values) else 0.0
    spans = []
    for word, value in zip(words, values, strict=True):
        strength = abs(value) / largest if largest > 0 else 0.0
        colour = f"rgba({BLUE if value > 0 else RED}, {0.65 * strength:.3f})"
        spans.append(
            f'<span style="background: {colour}; padding: .1em .2em" title="{value:+.4f}">{escape(word)}</span>'
        )
    return f'<p style="line-height: 2">{" ".join(spans)}</p>\n'


def image_html(image: np.ndarray, values: np.ndarray) -> str:
    """An image, uint8 [H, W, C], and beside it where the class is read from: `values [C, h, w]` summed over C."""
    heat = values.sum(axis=0)
    scale = float(np.abs(heat).max()) or 1.0
    table = (colormaps["RdBu"](0.5 + heat / (2 * scale))[..., :3] * 255).astype(np.uint8)
    plain = image[..., 0] if image.shape[-1] == 1 else image
    return f"<p>{_picture(plain, 'the image')} {_picture(table, 'blue: for the class, red: against it')}</p>\n"


def attribution_page(title: str, parts: Sequence[tuple[str, str]]) -> str:
    """parts: (heading, HTML). One file without network or script."""
    lead = "What in each input speaks for its prediction, by integrated gradients (Sundararajan et al. 2017)."
    note = paragraph("Blue speaks for the predicted class, orange or red against it. Attribution is no proof of cause.")
    sections = [(f"input-{number}", heading, html) for number, (heading, html) in enumerate(parts, 1)]
    return page(title, lead, [(a, h, html + (note if n == 0 else "")) for n, (a, h, html) in enumerate(sections)])


def _picture(table: np.ndarray, words: str) -> str:
    large = Image.fromarray(table).resize((HEAT_SIDE, HEAT_SIDE), Image.Resampling.NEAREST)
    stream = io.BytesIO()
    large.save(stream, "PNG")
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img width="{HEAT_SIDE}" alt="{escape(words)}" title="{escape(words)}" src="data:image/png;base64,{data}">'
