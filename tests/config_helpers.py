"""What tests of configurations share."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedfm.config import load_config
from fedfm.errors import ConfigError

DOMAIN_A = '[domains.a]\ntask = "text-classification"\n'


def write(folder: Path, text: str) -> Path:
    file = folder / "run.toml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(source, *overrides: str, load=load_config) -> list[str]:
    """Every problem as `where: what`, without the folder of the file."""
    with pytest.raises(ConfigError) as caught:
        load(source, overrides) if load is load_config else load(source, *overrides)
    folder = f"{source.parent}/" if isinstance(source, Path) else "nowhere"
    return [f"{problem.where}: {problem.what}".replace(folder, "") for problem in caught.value.problems]
