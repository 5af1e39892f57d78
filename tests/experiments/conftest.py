"""Experiments are scripts beside the package: their modules are imported for a test file, and forgotten after it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


@contextmanager
def modules_of(folder: Path, **environment: str) -> Iterator[Callable[[str], ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.syspath_prepend(str(folder))
        yield importlib.import_module
        for name in [n for n, m in sys.modules.items() if str(getattr(m, "__file__", "")).startswith(str(folder))]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def experiment():
    """`experiment("fair_resource")`: a script as a module."""
    with modules_of(EXPERIMENTS) as load:
        yield load


@pytest.fixture(scope="module")
def speed(tmp_path_factory):
    """`speed("floor")`: a module of the speed benchmark, its data in a temporary folder."""
    with modules_of(EXPERIMENTS / "speed", FEDFM_SPEED_FOLDER=str(tmp_path_factory.mktemp("speed"))) as load:
        yield load
