"""How every figure looks, on any machine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import matplotlib as mpl
from matplotlib.font_manager import fontManager

# Okabe and Ito (2008), https://jfly.uni-koeln.de/color/: told apart with any common colour vision. Its yellow is too
# faint for lines on white and its black is kept for means. The last four are darker, of Tol's muted and another brown
# (https://personal.sron.nl/~pault/), for comparisons of many settings.
PALETTE = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#999933", "#7F5539",
)  # fmt: skip
DASHES = ("-", "--", ":", "-.")
SHADES = (*PALETTE[:6], "#F0E442", "#332288")  # eight kinds of bars; what is left is grey
OTHER = "#BBBBBB"
STYLE = {
    "svg.hashsalt": "fedfm",
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that figures do not depend on the machine's fonts
    "font.size": 9,
    "text.parse_math": False,  # a label may hold dollars
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
}
# for letters that DejaVu lacks, where the machine has one of them: boxes tell no label from another
FALLBACKS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "WenQuanYi Zen Hei", "PingFang SC", "Hiragino Sans",
    "Apple SD Gothic Neo", "Arial Unicode MS", "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Thai",
)  # fmt: skip


def line_style(number: int) -> tuple[str, str]:
    """Colour and dash of the line with this number: first all colours solid, then all dashed, and so on."""
    return PALETTE[number % len(PALETTE)], DASHES[number // len(PALETTE) % len(DASHES)]


@contextmanager
def drawing() -> Iterator[None]:
    """In this context figures are drawn in the house's style; no word on the screen of letters without a glyph."""
    with mpl.rc_context(STYLE | {"font.family": [STYLE["font.family"], *_fallbacks()]}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        yield


@lru_cache(maxsize=1)
def _fallbacks() -> tuple[str, ...]:
    there = {font.name for font in fontManager.ttflist}
    return tuple(name for name in FALLBACKS if name in there)
