"""What a simulated run keeps of its test, example by example: `predictions/<model>/<domain>/<site>.npz`.

From these the report draws its confusion matrix, its calibration and its intervals by bootstrap. At a real site no such
file leaves, or is written.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np


def save_items(folder: Path, model: str, domain: str, site: str, items: Mapping[str, np.ndarray]) -> None:
    """Write a site's outcomes. `model`: "global", "personal" or "tuned", the last of which counts as personal."""
    place = folder / "predictions" / ("global" if model == "global" else "personal") / domain
    place.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(place / f"{site}.npz", **items)


def load_items(folder: Path, model: str, domain: str) -> dict[str, np.ndarray]:
    """The outcomes of all of a domain's sites, in order of site name; empty where the run has kept none.

    Of classes `probabilities` float32 [N, C] and `labels` int32 [N]; of tags `spans` int32 [N, types, 3] and `tokens`
    int32 [N, 2].
    """
    files = sorted((folder / "predictions" / model / domain).glob("*.npz"))
    parts = []
    for file in files:
        with np.load(file, allow_pickle=False) as read:
            parts.append({name: read[name] for name in read.files})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
