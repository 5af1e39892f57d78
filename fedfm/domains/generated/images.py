"""Generated microscope images: one stained cell in the field, four kinds, 32 x 32 pixels.

The kinds differ in the size of the cell, the shape of its nucleus and the grain around it, not in where they lie or how
dark they are stained. They are drawn, not diagnosed: the names describe the drawing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedfm.domains.examples import Examples

LABELS = ("small-cell", "lobed-cell", "granular-cell", "indented-cell")
SHARES = (0.3, 0.3, 0.2, 0.2)
SIZE = 32

# Turn this to make the task harder: how far a cell may drift towards another kind (0: never, 1: may become it).
DRIFT = 0.2

# radius of cell and nucleus in pixels; distance of the nucleus's three lobes from its middle in pixels;
# depth of the dent in the nucleus, strength of the grain: 0 to 1
SHAPES = np.array(
    [
        # cell, nucleus, lobes, dent, grain
        [8.0, 6.2, 0.5, 0.0, 0.0],
        [10.0, 3.4, 4.8, 0.0, 0.1],
        [10.5, 4.2, 1.0, 0.0, 1.0],
        [11.0, 7.2, 0.5, 1.0, 0.0],
    ]
)
ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE]
CENTRE = (SIZE - 1) / 2
RIM = 1.6  # pixels over which a disc fades out


@dataclass(frozen=True)
class Style:
    """How a site's microscope and stain look; colours are RGB in 0 to 1."""

    background: np.ndarray
    plasma: np.ndarray
    nucleus: np.ndarray
    contrast: float  # 1: as painted, 0: grey
    noise: float  # standard deviation of a pixel, 0 to 1
    blur: float  # weight of each neighbour in a three-tap filter
    shading: np.ndarray  # brightness lost towards one side: by rows, by columns
    off_centre: float  # most pixels between the cell and the middle of the image, by row and by column


def draw_style(rng: np.random.Generator) -> Style:
    return Style(
        background=np.array([0.93, 0.89, 0.88]) + rng.uniform(-0.06, 0.06, 3),
        plasma=np.array([0.72, 0.68, 0.86]) + rng.uniform(-0.07, 0.07, 3),
        nucleus=np.array([0.36, 0.22, 0.55]) + rng.uniform(-0.1, 0.1, 3),
        contrast=rng.uniform(0.7, 1.0),
        noise=rng.uniform(0.02, 0.06),
        blur=rng.uniform(0.0, 0.2),
        shading=rng.uniform(-0.08, 0.08, 2),
        off_centre=rng.uniform(3.5, 5.0),
    )


def render(kinds: np.ndarray, style: Style, rng: np.random.Generator) -> Examples:
    """One image of each kind (int64 [N]) in the site's style: uint8 [N, 32, 32, 3]."""
    count = len(kinds)
    others = rng.integers(len(LABELS), size=count)
    drift = DRIFT * rng.beta(1.0, 2.0, count)[:, None]
    shapes = (1 - drift) * SHAPES[kinds] + drift * SHAPES[others]
    shapes = shapes * rng.normal(1.0, 0.1, shapes.shape)

    canvas = np.broadcast_to(style.background, (count, SIZE, SIZE, 3))
    canvas = _paint_neighbours(canvas, style, rng)
    canvas = _paint_cell(canvas, shapes, style, rng)
    return Examples("image-classification", _photograph(canvas, style, rng), kinds.astype(np.int64))


def _paint_neighbours(canvas: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Parts of up to three other cells at the rim, some of them with a nucleus."""
    count = len(canvas)
    for _ in range(3):
        angle = rng.uniform(0, 2 * np.pi, count)
        middle = CENTRE + rng.uniform(16, 20, count) * np.stack([np.sin(angle), np.cos(angle)])
        radius = rng.uniform(4, 8, count)
        present = rng.random(count) < 0.6
        nucleated = present & (rng.random(count) < 0.5)
        canvas = _paint(canvas, _disc(middle, radius) * present[:, None, None], style.plasma)
        canvas = _paint(canvas, _disc(middle, radius * 0.6) * nucleated[:, None, None], style.nucleus)
    return canvas


def _paint_cell(canvas: np.ndarray, shapes: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    count = len(canvas)
    cell, nucleus, lobes, dent, grain = shapes.T
    middle = CENTRE + rng.uniform(-style.off_centre, style.off_centre, (2, count))
    turn = rng.uniform(0, 2 * np.pi, count)
    stain = rng.normal(0, 0.04, (count, 1, 1, 3))  # no two cells take the stain alike

    body = _disc(middle, cell)
    speckles = np.clip(rng.normal(0, 1.0, (count, SIZE, SIZE)), 0, 2) / 2
    canvas = _paint(canvas, body, style.plasma + stain)
    canvas = _paint(canvas, body * speckles * np.clip(grain, 0, 1)[:, None, None], style.nucleus + stain)

    kernel = np.zeros((count, SIZE, SIZE))
    for lobe in range(3):
        angle = turn + 2 * np.pi * lobe / 3
        kernel = np.maximum(kernel, _disc(middle + lobes * np.stack([np.sin(angle), np.cos(angle)]), nucleus))
    bite = _disc(middle + nucleus * np.stack([np.sin(turn), np.cos(turn)]), 0.75 * nucleus)
    kernel = kernel * (1 - bite * np.clip(dent, 0, 1)[:, None, None])
    return _paint(canvas, kernel, style.nucleus + stain)


def _photograph(canvas: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Blur, uneven light, contrast, noise; values in 0 to 1 become bytes."""
    pixels = np.arange(SIZE)
    for axis in (1, 2):
        before = canvas.take(np.maximum(pixels - 1, 0), axis)
        after = canvas.take(np.minimum(pixels + 1, SIZE - 1), axis)
        canvas = (1 - 2 * style.blur) * canvas + style.blur * (before + after)
    light = style.shading[0] * (ROWS / CENTRE - 1) + style.shading[1] * (COLUMNS / CENTRE - 1)
    canvas = 0.5 + style.contrast * (canvas + light[..., None] - 0.5)
    canvas = canvas + rng.normal(0, style.noise, canvas.shape)
    return np.clip(np.rint(255 * canvas), 0, 255).astype(np.uint8)


def _disc(middle: np.ndarray, radius: np.ndarray) -> np.ndarray:
    """How much of each pixel a disc with a soft rim covers: [N, 32, 32]; `middle` is [2, N], row and column."""
    row, column = middle[:, :, None, None]
    distance = np.sqrt((ROWS - row) ** 2 + (COLUMNS - column) ** 2)
    return np.clip(0.5 + (radius[:, None, None] - distance) / RIM, 0, 1)


def _paint(canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return canvas + cover[..., None] * (colour - canvas)
