"""What a site keeps to itself between rounds, on its own disk: one file a round, so that a run can go back to one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fedfm.arrays import Arrays


def save_private(folder: Path, site: str, round: int, tensors: Mapping[str, np.ndarray]) -> None:
    """Keep a site's tensors of a round under `folder`; a kill leaves the whole file or none."""
    from safetensors.numpy import save

    place = folder / site
    place.mkdir(parents=True, exist_ok=True)
    fresh = place / f"{round:06d}.tmp"
    fresh.write_bytes(save(dict(tensors)))  # save_file has an error of its own for a full disk, this an OSError
    fresh.replace(place / f"{round:06d}.safetensors")


def read_private(folder: Path, site: str, last: int, used: int) -> Arrays | None:
    """What the site kept in its latest round up to `last`; None where there is nothing.

    `used`: the last of its rounds whose update was used. What it kept in later ones is set aside (`.unused`): its
    answer came too late, never arrived or was refused, and no half of a round may count. Nothing is deleted on the
    word of a message.
    """
    from safetensors.numpy import load_file

    files = {int(file.stem): file for file in sorted((folder / site).glob("*.safetensors"))}
    for round in [round for round in files if used < round <= last]:
        file = files.pop(round)
        file.replace(file.with_suffix(".unused"))
    there = [file for round, file in files.items() if round <= last]
    return load_file(there[-1]) if there else None


def drop_private(folder: Path, site: str, round: int) -> None:
    """Forget what the site kept in a round, which then counts for nobody."""
    (folder / site / f"{round:06d}.safetensors").unlink(missing_ok=True)
